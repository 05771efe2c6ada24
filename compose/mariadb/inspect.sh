#!/usr/bin/env bash
# inspect.sh [ARGUMENT...]: the mariadb client in a container that has the volume. It uses the running server. If there is
# none, it starts its own without a network, and stops it with the client. Without arguments it prints overview.sql and
# opens the client. Arguments go to the client: -e 'SELECT * FROM sessions', -e 'source /inspect/overview.sql'.
set -euo pipefail

die() { echo "inspect: $*" >&2; exit 1; }

[ -r /run/secrets/database_password ] || die "/run/secrets/database_password must be readable: start the services once"
MYSQL_PWD=$(</run/secrets/database_password)
export MYSQL_PWD
socket=/run/mysqld/inspect.sock
client=(mariadb --user=tricycle --database=tricycle)

if timeout 3 bash -c ': </dev/tcp/mariadb/3306' 2>/dev/null; then # bounded: a name server may be slow
  client+=(--host=mariadb)
else
  [ -d /var/lib/mysql/tricycle ] || die "database tricycle is not in the volume: start the services once"
  mariadbd --skip-networking --socket="$socket" --pid-file=/run/mysqld/inspect.pid 2>/tmp/mariadbd.log &
  server=$!
  trap 'kill "$server" 2>/dev/null; wait "$server"' EXIT
  until "${client[@]}" --socket="$socket" -e 'SELECT 1' >/dev/null 2>&1; do
    kill -0 "$server" 2>/dev/null || { grep -F '[ERROR]' /tmp/mariadbd.log >&2 || cat /tmp/mariadbd.log >&2; die "the server did not start"; }
    sleep 0.2
  done
  client+=(--socket="$socket")
fi

if [ $# -gt 0 ]; then
  "${client[@]}" "$@"
else
  "${client[@]}" --table </inspect/overview.sql
  "${client[@]}"
fi
