#!/usr/bin/env bash
# Prints the values that --config=release stamps (Bazel's workspace_status_command). A release is a clean, tagged commit.
set -euo pipefail
die() { echo "$*" >&2; exit 1; }

[ -z "$(git status --porcelain)" ] || die "release: the tree must be clean, see git status"
tag=$(git describe --exact-match --tags --match 'v[0-9]*' 2>/dev/null) || die "release: the commit must have a tag vX.Y.Z"
echo "STABLE_VERSION ${tag#v}"
echo "STABLE_REVISION $(git rev-parse HEAD)"
