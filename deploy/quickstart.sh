#!/usr/bin/env bash
# Builds nqkvd, starts it in the background, and runs the demo against it.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
# shellcheck source=deploy/progress.sh
source deploy/progress.sh

server=$root/build/release/bin/nqkvd
cli=$root/build/release/bin/nqkv
state=$root/build/quickstart
pid_file=$state/nqkvd.pid
service_log=$state/nqkvd.log
address_file=$state/addresses
ready_seconds=60
stop_seconds=60

usage() {
  cat <<'HELP'
Usage: deploy/quickstart.sh [--listen HOST:PORT] [--http_listen HOST:PORT] [-- NQKVD FLAGS...]
       deploy/quickstart.sh --stop

Installs what is missing, builds a release, starts nqkvd in the background unless it is running, runs `nqkv demo`, and
prints where the service is reached.

  --listen HOST:PORT       gRPC address, by default 127.0.0.1:6758.
  --http_listen HOST:PORT  Metrics, health and status page, by default 127.0.0.1:6759.
  --stop                   Ends the service: it drains, then exits.

Flags after -- go to nqkvd, such as --host_bytes=4GiB. Log and process id are in build/quickstart.
HELP
}

# fail WHAT-TO-DO
fail() {
  printf 'quickstart: %s\n' "$1" >&2
  exit 1
}

# The process id of the service that this script started, when it still runs.
running_pid() {
  local pid executable
  [[ -s $pid_file ]] || return 1
  pid=$(<"$pid_file")
  executable=$(readlink "/proc/$pid/exe" 2>/dev/null) || return 1
  [[ ${executable% (deleted)} == "$server" ]] || return 1
  printf '%s\n' "$pid"
}

stop() {
  local pid deadline=$((SECONDS + stop_seconds))
  if ! pid=$(running_pid); then
    rm -f "$pid_file"
    say 'nqkvd is not running'
    return 0
  fi
  say "Stopping nqkvd (process $pid)"
  kill -TERM "$pid"
  while kill -0 "$pid" 2>/dev/null && ((SECONDS < deadline)); do sleep 0.1; done
  if kill -0 "$pid" 2>/dev/null; then
    fail "nqkvd (process $pid) did not end within $stop_seconds s. Its log: $service_log. To end it by force: kill -KILL $pid"
  fi
  rm -f "$pid_file"
  say 'Stopped'
}

# The service says on /readyz when it takes requests.
is_ready() {
  local host=${http_listen%:*} port=${http_listen##*:} status
  host=${host//[\[\]]/}
  {
    exec 3<>"/dev/tcp/$host/$port" || return 1
    printf 'GET /readyz HTTP/1.0\r\nHost: %s\r\n\r\n' "$http_listen" >&3
    IFS= read -r -t 5 status <&3 || status=''
    exec 3<&-
  } 2>/dev/null
  [[ $status == HTTP/*' 200 '* ]]
}

# What our process writes when it takes calls; its log begins anew with each start. Another nqkvd that answers on the
# same port does not write there.
says_ready() {
  grep -q ' ready: ' "$service_log"
}

# A Unix socket's path has at most 107 bytes, and a checkout may lie deep.
socket_dir=$state/sockets
if ((${#socket_dir} > 80)); then
  socket_dir=${XDG_RUNTIME_DIR:-/tmp}/nqkv-quickstart-$(id -u)
fi

start() {
  local pid deadline taken
  mkdir -p "$state" "$socket_dir"
  chmod 0700 "$socket_dir"
  # Its own session: it outlives the terminal.
  setsid "$server" --listen="$listen" --http_listen="$http_listen" --socket_dir="$socket_dir" "${service_flags[@]}" \
    </dev/null >"$service_log" 2>&1 &
  pid=$!
  printf '%s\n' "$pid" >"$pid_file"
  printf '%s %s\n' "$listen" "$http_listen" >"$address_file"
  deadline=$((SECONDS + ready_seconds))
  until says_ready && is_ready; do
    if ! kill -0 "$pid" 2>/dev/null; then
      rm -f "$pid_file"
      if taken=$(grep -o -E -- '--(http_)?listen: .* is already in use' "$service_log"); then
        fail "$taken by another program, perhaps another nqkvd. End that one, or choose other addresses with --listen and --http_listen."
      fi
      tail -n 20 "$service_log" >&2
      fail 'nqkvd did not start; its last lines are above. If memory is short, pass -- --host_bytes=1GiB.'
    fi
    if ((SECONDS >= deadline)); then
      kill -TERM "$pid" 2>/dev/null || true
      tail -n 20 "$service_log" >&2
      fail "nqkvd was not ready within $ready_seconds s; its last lines are above. All of its log: $service_log"
    fi
    sleep 0.2
  done
}

listen=127.0.0.1:6758 http_listen=127.0.0.1:6759
service_flags=()
while (($# > 0)); do
  case $1 in
    --stop) stop; exit 0 ;;
    --listen | --http_listen)
      (($# > 1)) || fail "$1 needs HOST:PORT."
      printf -v "${1#--}" '%s' "$2"
      shift
      ;;
    --listen=* | --http_listen=*) argument=${1#--}; printf -v "${argument%%=*}" '%s' "${argument#*=}" ;;
    --) shift; service_flags=("$@"); break ;;
    --help | -h) usage; exit 0 ;;
    *) usage >&2; fail "unknown argument '$1'." ;;
  esac
  shift
done
for address in "$listen" "$http_listen"; do
  [[ $address =~ ^(.+):([0-9]+)$ ]] || fail "'$address' is not HOST:PORT."
done

say '1/4 Installing what is missing'
deploy/install-deps.sh --build

say "2/4 Building nqkvd and nqkv in build/release, $(build_jobs) compilers at once (some minutes the first time)"
logged "$root/build/quickstart-configure.log" cmake --preset release -DNQKV_BUILD_TESTS=OFF ||
  fail 'configuring failed; the reason is above. If build/release was made with other settings, delete it and run this again.'
logged "$root/build/quickstart-build.log" cmake --build build/release --target nqkvd nqkv -j "$(build_jobs)" ||
  fail 'the build failed; the reason is above. If the compiler was killed, memory is short: close other programs and run this again.'

if pid=$(running_pid); then
  read -r listen http_listen <"$address_file"
  say "3/4 nqkvd is already running (process $pid); stop it with deploy/quickstart.sh --stop"
  if [[ $(readlink "/proc/$pid/exe") == *' (deleted)' ]]; then
    say '    It is an older build: --stop and run this again for the new one'
  fi
  is_ready || fail "nqkvd (process $pid) does not answer on $http_listen. Its log: $service_log"
else
  say '3/4 Starting nqkvd'
  start
fi

say '4/4 Running the demo: one process stores a real model'"'"'s KV cache, another looks it up and checks it'
"$cli" demo --server="$listen" ||
  fail "the demo failed; the reason is above. The service still runs; its log: $service_log"

cat <<EOT

nqkvd is running.
  gRPC     $listen
  HTTP     http://$http_listen/  (/metrics, /healthz, /readyz, /api/status)
  log      $service_log
  sockets  $socket_dir
  look     build/release/bin/nqkv stat --socket_dir=$socket_dir
  stop     deploy/quickstart.sh --stop
EOT
