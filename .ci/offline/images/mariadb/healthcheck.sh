#!/usr/bin/env bash
# The stand-in's health command, for the options --connect and --innodb_initialized of the official one: over TCP, so that
# the server of a first start, which has no network yet, does not count.
set -euo pipefail
for option; do
  case $option in
  --connect) query='SELECT 1' ;;
  --innodb_initialized) query="SELECT 1 FROM information_schema.ENGINES WHERE engine = 'innodb' AND support IN ('YES', 'DEFAULT')" ;;
  *) echo "found option $option, expected --connect or --innodb_initialized" >&2; exit 2 ;;
  esac
  answer=$(mariadb --defaults-file=/var/lib/mysql/.my-healthcheck.cnf --protocol=tcp --host=127.0.0.1 \
    --skip-ssl-verify-server-cert --connect-timeout=3 --skip-column-names -B -e "$query")
  [ "$answer" = 1 ]
done
