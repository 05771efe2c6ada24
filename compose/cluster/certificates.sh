#!/usr/bin/env bash
# certificates.sh [token|ca]: writes what the services of cluster.yaml trust each other by, once: a CA, a certificate per
# server, passwords of Kafka, a bearer token, and the settings of each broker. Each service has its own volume.
# With an argument it prints the token for MS1, or the certificate of the CA.
set -euo pipefail
cd /trust # a volume for each service

case ${1:-} in
token) exec cat ms1/token ;;
ca) exec cat ms1/ca.pem ;;
esac
[ ! -e kafka3/complete ] || exit 0

work=$(mktemp -d) # with the key of the CA, which is not kept
ec=(-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -noenc)
random() { od -An -N24 -tx1 /dev/urandom | tr -d ' \n'; }
openssl req -x509 "${ec[@]}" -days 3650 -subj '/CN=tricycle cluster' -keyout "$work/ca.key" -out "$work/ca.pem" 2>/dev/null

# issue NAME: the directory of a server, whose host name it is.
issue() {
  cp "$work/ca.pem" "$1/"
  openssl req -x509 "${ec[@]}" -days 3650 -CA "$work/ca.pem" -CAkey "$work/ca.key" -subj "/CN=$1" \
    -addext "subjectAltName=DNS:$1,DNS:localhost,IP:127.0.0.1" -addext basicConstraints=critical,CA:FALSE \
    -keyout "$1/key.pem" -out "$1/certificate.pem" 2>/dev/null
}

for server in ms1 ms2 mariadb; do issue "$server"; done
cp "$work/ca.pem" ms3/

random >ms1/token
cp ms1/token ms2/
cp ms1/token ms3/
random >ms2/kafka_password
random >ms3/kafka_password

module=org.apache.kafka.common.security.plain.PlainLoginModule
kafka=$(random)
users="user_kafka=\"$kafka\" user_ms2=\"$(<ms2/kafka_password)\" user_ms3=\"$(<ms3/kafka_password)\""
node=0
for broker in kafka kafka2 kafka3; do
  node=$((node + 1))
  issue "$broker"
  cat "$broker/key.pem" "$broker/certificate.pem" >"$broker/keystore.pem"
  cat /cluster/client.properties - >"$broker/client.properties" <<END
sasl.jaas.config=$module required username="kafka" password="$kafka";
END
  # The last of two values counts.
  cat /kafka/server.properties /cluster/server.properties - >"$broker/server.properties" <<END
node.id=$node
advertised.listeners=SASL_SSL://$broker:9092
listener.name.sasl_ssl.plain.sasl.jaas.config=$module required username="kafka" password="$kafka" $users;
listener.name.controller.plain.sasl.jaas.config=$module required username="kafka" password="$kafka" user_kafka="$kafka";
END
done
chmod a+r ./*/* # a service has no other volume than its own, and runs under an id of its own
touch kafka3/complete
