#!/usr/bin/env bash
# What --config=release stamps: Bazel's workspace_status_command. A release is a clean commit with a version's tag.
set -euo pipefail
die() { echo "$*" >&2; exit 1; }

[ -z "$(git status --porcelain)" ] || die "a release is built from a clean tree: commit or remove what git status shows"
tag=$(git describe --exact-match --tags --match 'v[0-9]*' 2>/dev/null) || die "a release is built from a tagged commit: git tag vX.Y.Z"
echo "STABLE_VERSION ${tag#v}"
echo "STABLE_REVISION $(git rev-parse HEAD)"
