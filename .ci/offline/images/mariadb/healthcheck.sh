#!/usr/bin/env bash
# The health command of the stand-in, with the options --connect and --innodb_initialized of the official one. It uses TCP,
# because the temporary server of the first start has no network.
set -euo pipefail
for option; do
  case $option in
  --connect) query='SELECT 1' ;;
  --innodb_initialized) query="SELECT 1 FROM information_schema.ENGINES WHERE engine = 'innodb' AND support IN ('YES', 'DEFAULT')" ;;
  *) echo "option must be --connect or --innodb_initialized, got $option" >&2; exit 2 ;;
  esac
  answer=$(mariadb --defaults-file=/var/lib/mysql/.my-healthcheck.cnf --protocol=tcp --host=127.0.0.1 \
    --skip-ssl-verify-server-cert --connect-timeout=3 --skip-column-names -B -e "$query")
  [ "$answer" = 1 ]
done
