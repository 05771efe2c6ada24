#!/usr/bin/env bash
# passwords.sh: generates the passwords of the database in the directory that the services have at /run/secrets. It keeps
# existing ones, such as those of a directory that TRICYCLE_PASSWORDS names. It also checks the settings of MariaDB.
set -euo pipefail
cd /run/mysqld

die() { echo "passwords: $*" >&2; exit 1; }

# generate FILE MODE
generate() {
  if [ -s "$1" ]; then
    [ -r "$1" ] || die "$1: must be readable by user $(id -u), got mode $(stat -c %A "$1")"
    return
  fi
  [ -w . ] || die "$1: must be in the directory TRICYCLE_PASSWORDS, or user $(id -u) must be able to create it"
  (umask 077 && od -An -N24 -tx1 /dev/urandom | tr -d ' \n' >"$1.part")
  chmod "$2" "$1.part"
  mv "$1.part" "$1"
  echo "generated $1"
}

# MariaDB ignores a file of settings that it cannot read.
settings=/mariadb/tricycle.cnf
[ -r "$settings" ] || die "$settings: must be readable by user $(id -u), got mode $(stat -c %A "$settings") (chmod a+rX)"

if [ -O . ]; then chmod 755 .; fi # the directory of the image is open to everybody
generate database_password 444 # also for MS1, which runs as another user
generate database_root_password 400
