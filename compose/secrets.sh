#!/usr/bin/env bash
# compose/secrets.sh: makes the passwords of the database in compose/secrets, each once; what is there is kept.
#
# A container sees the file of a secret with the owner and the mode that it has here, and the containers run as users of
# their own. So the files can be read by everybody, and the folder by its owner alone.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

mkdir -p secrets
chmod 700 secrets
for name in database_password database_root_password; do
  if [ ! -s "secrets/$name" ]; then
    od -An -N24 -tx1 /dev/urandom | tr -d ' \n' >"secrets/$name.part"
    chmod 444 "secrets/$name.part"
    mv "secrets/$name.part" "secrets/$name"
    echo "made compose/secrets/$name"
  fi
done
