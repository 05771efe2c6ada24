#!/usr/bin/env bash
# Measures this tree with a real MariaDB, Kafka and Jaeger, which it starts and stops, and beside it, in turns, other revisions,
# or this one with N processes of MS3. Rates are compared with those of the last one.
#
#   bench/real.sh OUT.json [now,ms3=N] [REVISION...] [-- FLAG...]
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
settings=$(sed -nE 's/^    (GOMAXPROCS|GOGC|GOMEMLIMIT): "?([^"]*)"?$/,\1=\2/p' compose/compose.yaml | tr -d '\n')
unset GOMAXPROCS GOGC GOMEMLIMIT # the caller's
flags=(-programs "now=$work/programs/now$settings")
while [ $# -gt 0 ] && [ "$1" != -- ]; do
  if [[ $1 = now,ms3=* ]]; then
    flags+=(-programs "${1#*=} ms3=$work/programs/$1$settings")
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
for name in "${servers[@]}"; do
  serve "$name"
  [ ${#problems[@]} = 0 ] || exit 1
  flags+=(-process "$name=$(<"$work/servers/$name/pid")")
done
begin ''
"$work/bench" "${flags[@]}" -mariadb "$TRICYCLE_TEST_MARIADB" -kafka "$TRICYCLE_TEST_KAFKA" -otlp "${TRICYCLE_TEST_OTLP:-}" \
  -servers "$about, all on this machine" -out "$out" "$@"
