#!/usr/bin/env bash
# compose/secrets.sh generates the passwords of the database in compose/secrets, each once; an existing one is kept. It
# also makes readable what the containers mount, which a clone under a private umask or on an SELinux host is not.
#
# A container sees a mounted file with the owner and the mode that it has here, and the containers run as users of
# their own. So the files can be read by everybody, and the directory of the secrets by its owner alone.
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
    echo "made compose/secrets/$name"
  fi
done

# Compose has no option for the label of a secret.
if command -v selinuxenabled >/dev/null && selinuxenabled; then
  chcon -R -t container_file_t config jaeger kafka mariadb secrets
fi
