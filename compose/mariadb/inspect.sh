#!/usr/bin/env bash
# The mariadb client on the database, in a container that has the volume: through the running server where there is one,
# else through a server of its own that no network reaches and that ends with the client. Without arguments it prints
# overview.sql and opens the client; arguments are the client's: -e 'SELECT * FROM sessions', -e 'source /inspect/overview.sql'.
set -euo pipefail

say() { echo "inspect: $*" >&2; }

[ -r /run/secrets/database_password ] || { say "found no secret database_password, expected it from compose/secrets.sh"; exit 1; }
MYSQL_PWD=$(</run/secrets/database_password)
export MYSQL_PWD
socket=/run/mysqld/inspect.sock
client=(mariadb --user=tricycle --database=tricycle)

if timeout 3 bash -c ': </dev/tcp/mariadb/3306' 2>/dev/null; then # in time: a name server may be slow to say no
  client+=(--host=mariadb)
else
  [ -d /var/lib/mysql/tricycle ] || { say "the volume holds no database 'tricycle' yet, expected that the services ran once"; exit 1; }
  mariadbd --skip-networking --socket="$socket" --pid-file=/run/mysqld/inspect.pid 2>/tmp/mariadbd.log &
  server=$!
  trap 'kill "$server" 2>/dev/null; wait "$server"' EXIT
  until "${client[@]}" --socket="$socket" -e 'SELECT 1' >/dev/null 2>&1; do
    kill -0 "$server" 2>/dev/null || { grep -F '[ERROR]' /tmp/mariadbd.log >&2 || cat /tmp/mariadbd.log >&2; say "the server did not start"; exit 1; }
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
