#!/usr/bin/env bash
# Builds and runs the tests; the last lines are the sum of all ctest runs and each skipped test with its reason.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
# shellcheck source=deploy/progress.sh
source deploy/progress.sh
logs=$root/build/test-logs
results=$root/build/test-results

usage() {
  cat <<'HELP'
Usage: tests/run.sh [--ci | --long] [PART...]

Parts, each of which builds what it runs; without a name all of the first line:
  release  asan  tsan  fuzz                 at most 30 minutes from clean on 2 cores
  format   clang  tidy  cuda                what --ci adds: formatting, the clang build with thread-safety analysis, lint,
                                            and the CUDA targets with a table of each kernel's registers and spills
  long                                      what --long runs instead: tests labelled long, and 5 minutes of each fuzzer

Installs what is missing first (deploy/install-deps.sh). Exits 0 when everything passed, only tests that need a GPU were
skipped, and no part took more than NQKV_BUDGET_FACTOR times its budget: 3 unless that variable says otherwise, since other
work on the machine makes parts slower too. 0 lifts the limit.
HELP
}

# Seconds that each part may take on 2 cores from clean. Building is a part of its own, summed over the presets.
declare -A budgets=([build]=720 [release]=300 [asan]=300 [tsan]=120 [fuzz]=120 [format]=60 [clang]=900 [tidy]=900 [cuda]=60)
declare -A spent=()
budget_factor=${NQKV_BUDGET_FACTOR:-3}
order=()
failures=()  # Of what is no test: builds, formatting, lint.

# timed PART COMMAND...: adds the time to PART and returns the command's exit code.
timed() {
  local part=$1 start=$SECONDS code=0
  shift
  [[ -v spent[$part] ]] || { spent[$part]=0; order+=("$part"); }
  "$@" || code=$?
  spent[$part]=$((spent[$part] + SECONDS - start))
  return "$code"
}

# build PRESET TARGET [CMAKE ARGUMENTS...]
build() {
  local preset=$1 target=$2
  shift 2
  logged "$logs/configure-$preset.log" cmake --preset "$preset" "$@" &&
    logged "$logs/build-$preset.log" cmake --build "build/$preset" --target "$target" -j "$(build_jobs)"
}

# run_tests PART PRESET CTEST ARGUMENTS...
run_tests() {
  local part=$1 preset=$2
  shift 2
  ctest --test-dir "build/$preset" "$@" --show-only=json-v1 >"$results/$part.json" || return 1
  ctest --test-dir "build/$preset" "$@" --no-tests=error --output-on-failure --test-output-size-passed 1000000 \
    --output-junit "$results/$part.xml" -j "$(nproc)" </dev/null
}

# build_and_test PART PRESET TARGET CTEST ARGUMENTS...
build_and_test() {
  local part=$1 preset=$2 target=$3
  shift 3
  say "$part: building"
  if ! timed build build "$preset" "$target"; then
    failures+=("$part does not build")
    return 0
  fi
  say "$part: testing"
  timed "$part" run_tests "$part" "$preset" "$@" || true  # tests/test_report.py counts what failed.
}

sources() {
  find proto kernels storage service client tests -name '*.h' -o -name '*.cc' -o -name '*.cu' -o -name '*.cuh' | sort
}

check_format() {
  sources | xargs clang-format --dry-run -Werror
}

# A compiler of another family, with thread-safety analysis as errors, over everything.
check_clang() {
  build clang all
}

check_tidy() {
  build clang nqkv_proto_generated || return 1
  find proto kernels storage service client -path client/python -prune -o -name '*.cc' -print | sort |
    xargs -P "$(build_jobs)" -n 1 sh -c 'echo "clang-tidy $1"; exec clang-tidy -p build/clang --quiet "$1"' lint
}

run_part() {
  case $1 in
    release) build_and_test release release all --label-exclude '^long$' ;;
    asan) build_and_test asan asan all --label-exclude '^long$' ;;
    tsan) build_and_test tsan tsan nqkv_tsan_tests --label-regex '^tsan$' ;;
    fuzz) build_and_test fuzz clang nqkv_fuzzers --label-regex '^fuzz$' ;;
    cuda)
      build_and_test cuda cuda nqkv_cuda_tests --label-regex '^(cuda|gpu)$'
      sed -n '/^kernel /,/^\[/{/^\[/!p}' "$logs/build-cuda.log"
      ;;
    long) run_long ;;
    format)
      say 'format: checking'
      timed format check_format || failures+=("sources are not formatted: run clang-format -i on them")
      ;;
    clang)
      say 'clang: building with thread-safety analysis'
      timed clang check_clang || failures+=("clang does not build")
      ;;
    tidy)
      say 'tidy: checking'
      timed tidy logged "$logs/tidy.log" check_tidy || failures+=("clang-tidy has findings")
      ;;
  esac
}

run_long() {
  build_and_test long release all --label-regex '^long$'
  say 'fuzz: building'
  if ! timed build build clang nqkv_fuzzers -DNQKV_FUZZ_SECONDS=300; then
    failures+=("the fuzzers do not build")
    return 0
  fi
  timed fuzz run_tests fuzz clang --label-regex '^fuzz$' || true
  cmake --preset clang -U NQKV_FUZZ_SECONDS >/dev/null
}

# A part over its budget is shown; one far over it fails the run, so that the tests stay short enough to be run.
check_budgets() {
  local part limit
  for part in "${order[@]}"; do
    limit=$((budget_factor * ${budgets[$part]:-0}))
    if ((limit > 0 && spent[$part] > limit)); then
      failures+=("$part took ${spent[$part]} s, more than $budget_factor times its budget of ${budgets[$part]} s")
    fi
  done
}

print_times() {
  local part note
  printf '\n%-10s %8s %8s\n' part seconds budget
  for part in "${order[@]}"; do
    note=''
    if [[ -v budgets[$part] ]] && ((spent[$part] > budgets[$part])); then note='  OVER BUDGET'; fi
    printf '%-10s %8d %8s%s\n' "$part" "${spent[$part]}" "${budgets[$part]:--}" "$note"
  done
  printf '%-10s %8d\n' 'in all' "$SECONDS"
}

parts=() deps=(--tests)
for argument in "$@"; do
  case $argument in
    --ci) parts+=(format release asan tsan fuzz clang tidy cuda) ;;
    --long) parts+=(long) ;;
    release | asan | tsan | fuzz | format | clang | tidy | cuda | long) parts+=("$argument") ;;
    --help | -h) usage; exit 0 ;;
    *) usage >&2; printf "tests/run.sh: unknown argument '%s'.\n" "$argument" >&2; exit 2 ;;
  esac
done
((${#parts[@]} > 0)) || parts=(release asan tsan fuzz)
[[ " ${parts[*]} " != *' format '* && " ${parts[*]} " != *' tidy '* ]] || deps=(--ci)
[[ " ${parts[*]} " != *' cuda '* ]] || deps+=(--cuda)

[[ $budget_factor =~ ^[0-9]+$ ]] || { printf "tests/run.sh: NQKV_BUDGET_FACTOR is '%s', not a whole number.\n" "$budget_factor" >&2; exit 2; }

rm -rf "$results"
mkdir -p "$results" "$logs"
timed install deploy/install-deps.sh "${deps[@]}"
for part in "${parts[@]}"; do
  run_part "$part"
done

check_budgets
print_times
python3 tests/test_report.py "$results" "${failures[@]}"
