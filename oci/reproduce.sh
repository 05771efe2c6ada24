#!/usr/bin/env bash
# oci/reproduce.sh [USER USER]: verifies that the images do not depend on the place, the time or the user of a build.
#
# It builds HEAD in two fresh clones that share nothing. They differ in path, user (as root, with two names), home, output
# base, umask, time zone, language and file dates, and use no cache. The script prints the digests of every index and of
# both platforms in it, and fails unless they are equal. Then it changes one line of the second clone and fails unless
# every digest differs, which shows that the comparison works.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

users=("${1:-$(id -un)}" "${2:-${1:-$(id -un)}}")
work=$(mktemp -d /tmp/reproduce.XXXXXX)
chmod 755 "$work"
places=("$work/a" "$work/another/place/further.down")
zones=(UTC Pacific/Auckland)
masks=(022 077)
dates=('2001-01-01 00:00' 'now')

# as N COMMAND...: runs COMMAND in clone N, as its user, in its environment.
as() {
  local n=$1 user=() home
  shift
  home=$(getent passwd "${users[n]}" | cut -d: -f6)
  [ "${users[n]}" = "$(id -un)" ] || user=(runuser -u "${users[n]}" --)
  (cd "${places[n]}" && umask "${masks[n]}" &&
    "${user[@]}" env -i PATH="$PATH" HOME="$home" USER="${users[n]}" TZ="${zones[n]}" LANG=C.UTF-8 "$@")
}

bazel_in() { as "$1" bazel --output_base="$work/out$1/base" "${@:2}"; }

clean() {
  bazel_in 0 clean --expunge || true
  bazel_in 1 clean --expunge || true
  chmod -R u+w "$work" && rm -rf "$work"
}
trap clean EXIT

clone() {
  git clone -q --no-hardlinks . "${places[$1]}"
  mkdir "$work/out$1"
  find "${places[$1]}" -exec touch -d "${dates[$1]}" {} +
  chown -R "${users[$1]}" "${places[$1]}" "$work/out$1"
}

# build N: builds clone N and prints the digests, one line per image.
build() {
  local layout index
  # No cache, and no analyzers, which do not affect the output.
  bazel_in "$1" build --disk_cache= --remote_cache= --norun_validations //:images >&2
  for layout in "${places[$1]}"/bazel-bin/oci/*/; do
    [ -e "$layout/index.json" ] || continue
    index=$(grep -o 'sha256:[0-9a-f]*' "$layout/index.json")
    if grep -q '"manifests"' "$layout/blobs/${index/://}"; then # an index, not one platform's image
      echo "$(basename "$layout")" "$index" "$(grep -o 'sha256:[0-9a-f]*' "$layout/blobs/${index/://}" | paste -sd' ')"
    fi
  done
}

clone 0
clone 1
first=$(build 0)
bazel_in 0 clean --expunge # makes room: each clone takes more than 3 GB
second=$(build 1)
printf 'image  index  linux/amd64  linux/arm64\n%s\n' "$first"
[ -n "$first" ] || { echo "reproduce: the build produced no images" >&2; exit 1; }
[ "$first" = "$second" ] || { diff <(echo "$first") <(echo "$second") >&2 || true; echo "reproduce: the digests of the two builds differ" >&2; exit 1; }
echo "the independent second build has the same digests"

sed -i 's/^const healthTimeout = 3/const healthTimeout = 4/' "${places[1]}/lib/program/program.go"
grep -q '^const healthTimeout = 4' "${places[1]}/lib/program/program.go" || { echo "reproduce: lib/program/program.go has no line healthTimeout = 3" >&2; exit 1; }
changed=$(build 1)
same=$(comm -12 <(tr ' ' '\n' <<<"$first" | grep sha256 | sort) <(tr ' ' '\n' <<<"$changed" | grep sha256 | sort))
[ -z "$same" ] || { echo "reproduce: these digests do not depend on the changed line: $same" >&2; exit 1; }
echo "after a change of one line, every digest differs"
