#!/usr/bin/env bash
# compose/secrets.sh generates the passwords of the database in compose/secrets and keeps existing ones. It also makes the
# mounted files readable for the containers; under a private umask or on an SELinux host a clone is not readable.
#
# A container sees a mounted file with its owner and mode on the host, and the containers run as other users. Therefore
# everybody may read the files, and only the owner may enter the directory of the secrets.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

chmod -R a+rX config jaeger kafka mariadb
mkdir -p secrets
chmod 700 secrets
for name in database_password database_root_password; do
  if [ ! -s "secrets/$name" ]; then
    od -An -N24 -tx1 /dev/urandom | tr -d ' \n' >"secrets/$name.part"
    chmod 444 "secrets/$name.part"
    mv "secrets/$name.part" "secrets/$name"
    echo "generated compose/secrets/$name"
  fi
done

# Compose has no option for the SELinux label of a secret.
if command -v selinuxenabled >/dev/null && selinuxenabled; then
  chcon -R -t container_file_t config jaeger kafka mariadb secrets
fi
