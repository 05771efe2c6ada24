# shellcheck shell=bash
# Functions of .ci/run and .ci/full: steps, servers, a test run and its report.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

work=$(mktemp -d)
problems=()
step='' step_from=0
: >"$work/closing"

# Test variables of the caller are ignored: every run uses the same servers.
# shellcheck disable=SC2086 # a list of names
unset ${!TRICYCLE_TEST_@}

clean() {
  local dir
  for dir in "$work"/servers/*/; do
    [ ! -s "$dir/pid" ] || .ci/servers "$(basename "$dir")" kill "$dir" || true
  done
  rm -rf "$work"
}
trap clean EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# begin STEP: prints the duration of the previous step.
begin() {
  [ -z "$step" ] || printf -- '-- %s: %d s\n' "$step" $((SECONDS - step_from))
  step=$1 step_from=$SECONDS
  [ -z "$step" ] || printf '\n== %s\n' "$step"
}

# problem TEXT: later steps still run, so one run reports all problems.
problem() {
  problems+=("$step: $*")
  printf '!! %s\n' "$*"
}

check() {
  begin "$1"
  "${@:2}" || problem "failed"
}

# free_port: prints a port P such that P and P+1 are free (Kafka uses both), below the kernel's range for clients.
free_port() {
  local port
  while port=$((RANDOM % 10000 + 20000)); do
    { : <"/dev/tcp/127.0.0.1/$port" || : <"/dev/tcp/127.0.0.1/$((port + 1))"; } 2>/dev/null || break
  done
  echo "$port"
}

# serve NAME [PORT]: starts the server and exports its address for the tests.
serve() {
  local answer
  begin "start $1"
  answer=$(.ci/servers "$1" start "$work/servers/$1" "${2:-$(free_port)}") || {
    problem "did not start"
    return 0
  }
  case $1 in
  mariadb*) export TRICYCLE_TEST_MARIADB=$answer ;;
  kafka*) export TRICYCLE_TEST_KAFKA=$answer ;;
  jaeger) export TRICYCLE_TEST_OTLP=${answer%%$'\n'*} TRICYCLE_TEST_JAEGER=${answer##*$'\n'} ;;
  esac
}

# prometheus: for the tests of dashboard and alerts.
prometheus() {
  begin 'Prometheus'
  if .ci/install promtool prometheus; then export TRICYCLE_TEST_PROMETHEUS=1; else problem 'not installed'; fi
}

# A pattern of the accepted reasons for skipping a test on this machine.
absent='does not run on linux/' # the images of the other architecture

# images: builds them with Bazel if it works, for the tests of the images, and finds a Docker engine to run them.
images() {
  begin 'images'
  if ! timeout 120 bazel version; then # a launcher may be unable to fetch its release
    echo 'skipped: no working bazel on this machine'
  elif ! bazel build --config=ci //oci:oci_test; then
    problem 'not built'
  else
    export TRICYCLE_TEST_IMAGES=$PWD/bazel-bin/oci/images.json
    export TRICYCLE_TEST_ALLINONE=$PWD/bazel-bin/services/allinone/cmd/allinone/allinone_/allinone
  fi
  [ -n "${TRICYCLE_TEST_IMAGES:-}" ] || absent+='|TRICYCLE_TEST_IMAGES'
  if docker version >/dev/null 2>&1; then
    TRICYCLE_TEST_DOCKER=$(docker context inspect --format '{{.Endpoints.docker.Host}}')
    export TRICYCLE_TEST_DOCKER
  else
    echo 'skipped: no Docker engine, the images are not run'
    absent+='|TRICYCLE_TEST_DOCKER'
  fi
}

# browser: finds or installs Chromium and axe-core for the tests of the page.
browser() {
  begin 'browser'
  command -v chromium || command -v google-chrome || .ci/install chromium chromium || true
  { TRICYCLE_TEST_BROWSER=$(command -v chromium || command -v google-chrome) && TRICYCLE_TEST_AXE=$(.ci/axe); } ||
    problem 'not installed'
  export TRICYCLE_TEST_BROWSER TRICYCLE_TEST_AXE
}

# schemathesis: finds or installs it for the probing of the HTTP API.
schemathesis() {
  begin 'Schemathesis'
  if TRICYCLE_TEST_SCHEMATHESIS=$(.ci/schemathesis); then
    export TRICYCLE_TEST_SCHEMATHESIS
  else
    echo 'skipped: not installed, the HTTP API is not probed'
    absent+='|TRICYCLE_TEST_SCHEMATHESIS'
  fi
}

# tests NAME SKIPS [FLAG...]: tests all packages with coverage. A skip whose reason does not match the pattern SKIPS is a
# problem. Coverage is that of the packages of services and lib, except test packages, whose names end in 'test'.
tests() {
  local events=$work/events profile=$work/profile covered
  begin "$1"
  rm -f "$profile"
  covered=$(go list ./services/... ./lib/... | grep -v 'test$' | paste -sd,)
  # -json, because output without a newline hides the line of a skipped test in plain text. The lines for each package
  # are printed at once and again at the end, without the list of covered packages, which go test cuts into several events.
  go test -count=1 -json "${@:3}" -coverpkg="$covered" -coverprofile="$profile" ./... | tee "$events" |
    jq -j --unbuffered 'select(.Action == "output" and (.Test | not)).Output | select(test("^(ok|FAIL|[?]|\t)"))
      | sub("(?<part>of statements) in [^\n]*\n?"; .part + "\n")' |
    tee "$work/closing" || problem "go test failed"

  jq -j 'select(.Action == "build-output").Output' "$events"
  jq -js '[.[] | select(.Package)] | group_by([.Package, .Test])[] | select(any(.Action == "fail"))[]
    | select(.Action == "output").Output' "$events"

  # The reason is the last log line of a skipped test, "file.go:LINE: reason".
  jq -js '[.[] | select(.Test)] | group_by([.Package, .Test])[] | select(any(.Action == "skip"))
    | ([.[] | select(.Action == "output").Output | select(test("[^ ]+[.]go:[0-9]+: "))
        | sub("^.* (?=[^ ]+[.]go:[0-9]+: )"; "")] | last // "no reason given\n") as $reason
    | "\(.[0].Package) \(.[0].Test): \($reason)"' "$events" >"$work/skipped"
  jq -rs 'map(select(.Test).Action) | "\(map(select(. == "pass")) | length) tests passed, \(
    map(select(. == "fail")) | length) failed, \(map(select(. == "skip")) | length) skipped"' "$events"
  sed 's/^/skipped: /' "$work/skipped"
  ! grep -vE "$2" "$work/skipped" >/dev/null || problem "the reason for skipping a test must match '$2'"

  coverage=0
  [ ! -s "$profile" ] || coverage=$(go tool cover -func="$profile" | awk '/^total:/ { sub("%", "", $3); print $3 }')
  printf 'coverage of services and lib without test packages: %s %%\n' "$coverage"
}

# containers: loads the images of this tree with Bazel if it works, pulls those of the environment or builds stand-ins (as
# root), and exports the variable that enables the tests of the containers.
containers() {
  local image missing=()
  check 'images of the environment' .ci/offline/images/build
  begin 'images of the services'
  if ! timeout 120 bazel version; then
    echo 'no working bazel: using the images in the engine'
  elif ! bazel run --config=ci //:load; then
    problem 'not loaded'
  fi
  while read -r image; do
    docker image inspect --format '{{index .RepoTags 0}}{{if index .Config.Labels "tricycle.standin"}}, a stand-in{{end}}' "$image" ||
      missing+=("$image")
  done < <(docker compose config --images)
  if [ ${#missing[@]} = 0 ]; then export TRICYCLE_TEST_COMPOSE=1; else problem "missing images: ${missing[*]}"; fi
}

# finish: prints the result, then the closing lines of go test, where CI expects them.
finish() {
  begin ''
  printf '\n== result after %d s\n' "$SECONDS"
  if [ ${#problems[@]} = 0 ]; then echo "no problems"; else printf '!! %s\n' "${problems[@]}"; fi
  cat "$work/closing"
  [ ${#problems[@]} = 0 ]
}
