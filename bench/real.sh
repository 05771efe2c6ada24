#!/usr/bin/env bash
# Measures this tree with a real MariaDB, Kafka and Jaeger, which it starts and stops, and beside it, in turns, other revisions,
# or this one with N processes of MS3, or with TLS on all links. Rates are compared with those of the last one.
#
#   bench/real.sh OUT.json [now,ms3=N] [now,tls] [REVISION...] [-- FLAG...]
#
# The flags are those of bench. The results are in OUT.json and the plot in OUT.svg. TMPDIR must be on a real disk: the
# database's logs are there, and a commit waits for them.
set -euo pipefail
out=$(realpath "${1:?OUT.json is missing}")
shift
# shellcheck source=testing.sh
. "$(dirname "${BASH_SOURCE[0]}")/../.ci/testing.sh"

# build NAME: the programs of the current directory, as they are in the images, with their revision.
build() {
  CGO_ENABLED=0 go build -buildvcs=auto -o "$work/programs/$1/" ./services/allinone/cmd/allinone ./services/ms1/cmd/ms1 ./services/ms2/cmd/ms2 ./services/ms3/cmd/ms3
}

mkdir -p "$work/programs"
begin 'build'
build now
go build -o "$work/bench" ./bench
# The runtime's settings of the containers. They have one processor each; other revisions run as theirs did, without.
settings=$(sed -nE 's/^    (GOMAXPROCS|GOGC|GOMEMLIMIT|GODEBUG): "?([^"]*)"?$/,\1=\2/p' compose/compose.yaml | tr -d '\n')
unset GOMAXPROCS GOGC GOMEMLIMIT GODEBUG # the caller's
flags=(-programs "now=$work/programs/now$settings")
while [ $# -gt 0 ] && [ "$1" != -- ]; do
  if [[ $1 = now,ms3=* ]]; then
    flags+=(-programs "${1#*=} ms3=$work/programs/$1$settings")
    shift
    continue
  fi
  if [ "$1" = now,tls ]; then
    flags+=(-programs "tls=$work/programs/now,tls=$work/tls$settings")
    shift
    continue
  fi
  git clone -q --no-checkout . "$work/tree/$1"
  (cd "$work/tree/$1" && git checkout -q --detach "$1" && build "$1")
  flags+=(-programs "$1=$work/programs/$1")
  shift
done
[ $# = 0 ] || shift

servers=(mariadb kafka) about='MariaDB with a flush for each commit and Kafka' # as .ci/servers starts them
if [[ " $* " = *' -otlp '* ]]; then # a collector of the caller's, or '' for one that keeps nothing
  about+=", spans to another collector"
else
  servers+=(jaeger) about+=", spans to Jaeger"
fi
# Both servers have TLS beside plain text, so that all subjects use the same ones.
mkdir -p "$work"/{tls,servers/mariadb,servers/kafka}
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -noenc -days 2 -subj /CN=bench -addext subjectAltName=IP:127.0.0.1 \
  -keyout "$work/tls/key.pem" -out "$work/tls/certificate.pem" 2>/dev/null
cat "$work"/tls/{key,certificate}.pem >"$work/tls/keystore.pem"
printf -- '--ssl-%s.pem\n' "cert=$work/tls/certificate" "key=$work/tls/key" >"$work/servers/mariadb/options"
broker=127.0.0.1:$(free_port) secure=127.0.0.1:$(free_port)
cat >"$work/servers/kafka/properties" <<END
listeners=PLAINTEXT://$broker,CONTROLLER://127.0.0.1:$((${broker#*:} + 1)),SSL://$secure
advertised.listeners=PLAINTEXT://$broker,SSL://$secure
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SSL:SSL
ssl.keystore.type=PEM
ssl.keystore.location=$work/tls/keystore.pem
END
flags+=(-kafka-tls "$secure")
for name in "${servers[@]}"; do
  serve "$name" "$([ "$name" != kafka ] || echo "${broker#*:}")"
  [ ${#problems[@]} = 0 ] || exit 1
  flags+=(-process "$name=$(<"$work/servers/$name/pid")")
done
begin ''
"$work/bench" "${flags[@]}" -mariadb "$TRICYCLE_TEST_MARIADB" -kafka "$TRICYCLE_TEST_KAFKA" -otlp "${TRICYCLE_TEST_OTLP:-}" \
  -servers "$about, all on this machine" -out "$out" "$@"
