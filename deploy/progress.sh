# shellcheck shell=bash
# Sourced by quickstart.sh and tests/run.sh: what a long step shows while it runs, and what a failed one shows.

# say TEXT: a line with the seconds since the script began.
say() {
  printf '[%4d s] %s\n' "$SECONDS" "$*"
}

# logged LOG COMMAND...: runs COMMAND with all of its output in LOG, and shows its latest line every 15 s. When it fails,
# shows what the log says about it and returns the exit code.
logged() {
  local log=$1 code=0
  shift
  mkdir -p "$(dirname "$log")"
  : >"$log"
  { "$@" </dev/null 2>&1 || code=$?; printf '%s\n' "$code" >"$log.code"; } | show_progress "$log"
  code=$(<"$log.code")
  rm -f "$log.code"
  ((code == 0)) || show_failure "$log"
  return "$code"
}

show_progress() {
  local line next=$((SECONDS + 15))
  while IFS= read -r line || [[ -n $line ]]; do
    printf '%s\n' "$line" >>"$1"
    if ((SECONDS >= next)) && [[ -n $line ]]; then
      say "  ${line:0:100}"
      next=$((SECONDS + 15))
    fi
  done
}

# The compiler's first errors when there are any, since ninja may print much after them; else the last lines.
show_failure() {
  if grep -q -E '(error:|^FAILED:|CMake Error)' "$1"; then
    grep -E -A 8 '(error:|^FAILED:|CMake Error)' "$1" | cut -c 1-400 | head -n 60 >&2
  else
    tail -n 40 "$1" >&2
  fi
  printf 'All of its output: %s\n' "$1" >&2
}

# build_jobs: as many compilers at once as there are cores and memory for (1.5 GB each).
build_jobs() {
  local by_memory cores
  cores=$(nproc)
  by_memory=$(awk '/^MemAvailable:/ {print int($2 / 1500000)}' /proc/meminfo)
  ((by_memory >= 1)) || by_memory=1
  printf '%d\n' "$((by_memory < cores ? by_memory : cores))"
}
