#!/usr/bin/env bash
# oci/bazel.sh ARGUMENT...: runs Bazel in a container with the engine's socket. Bazel's image has no Docker client, which
# //:load needs only to load an image: curl does that.
set -euo pipefail

mkdir -p /tmp/client
cat >/tmp/client/docker <<'CLIENT'
#!/usr/bin/env bash
# docker load --input FILE
set -euo pipefail
[ "$1 $2" = 'load --input' ] || { echo "docker: must be 'load --input FILE', got '$*'" >&2; exit 1; }
curl -fsS --unix-socket /var/run/docker.sock -H 'Content-Type: application/x-tar' -H 'Expect:' \
  -T "$3" -X POST http://docker/images/load
CLIENT
chmod +x /tmp/client/docker
command -v docker >/dev/null || PATH=/tmp/client:$PATH
exec bazel "$1" --symlink_prefix=/ "${@:2}" # no links in the clone, which would belong to root
