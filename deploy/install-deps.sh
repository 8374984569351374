#!/usr/bin/env bash
# Installs what building and testing need on Debian 12 (Ubuntu 24.04 has the same packages): compilers and libraries
# with apt, Python tools with pip into build/venv. Prints nothing when nothing is missing.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=$root/build/venv
log=$root/build/install-deps.log

usage() {
  cat <<'HELP'
Usage: deploy/install-deps.sh [--build | --tests | --ci] [--cuda]

  --build  What building and running nqkvd and nqkv needs.
  --tests  That, and what the tests need: GoogleTest, clang for the fuzzers, Python packages in build/venv. The default.
  --ci     That, and clang-format and clang-tidy.
  --cuda   Also a CUDA compiler in build/venv, where no nvcc is installed.

Needs root or sudo, and the network, only when something is missing.
HELP
}

fail() {
  printf 'install-deps: %s\n' "$1" >&2
  exit 1
}

build_packages=(
  g++ cmake ninja-build ccache pkg-config
  libgrpc++-dev protobuf-compiler protobuf-compiler-grpc libprotobuf-dev libabsl-dev libssl-dev
  prometheus-cpp-dev libcivetweb-dev libspdlog-dev nlohmann-json3-dev libisal-dev libzstd-dev
)
test_packages=(libgtest-dev libgmock-dev libbenchmark-dev libboost-context-dev clang libclang-rt-14-dev python3 python3-dev python3-venv)
ci_packages=(clang-format clang-tidy)

install_packages() {
  local -a missing=() as_root=()
  local package
  for package in "$@"; do
    [[ " ${missing[*]} " != *" $package "* ]] || continue
    [[ $(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null) == installed ]] || missing+=("$package")
  done
  ((${#missing[@]} > 0)) || return 0
  if ((EUID != 0)); then
    command -v sudo >/dev/null ||
      fail "these packages are missing and need root: run 'apt-get install ${missing[*]}' as root, then this again."
    as_root=(sudo)
    [[ -t 0 ]] || as_root=(sudo -n)
  fi
  printf 'Installing %d Debian packages: %s\n' "${#missing[@]}" "${missing[*]}"
  mkdir -p "$root/build"
  local -a apt=(
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive
    apt-get -q -y -o Acquire::Retries=5 -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0
  )
  if ! { "${apt[@]}" update && "${apt[@]}" install --no-install-recommends "${missing[@]}"; } >"$log" 2>&1 </dev/null; then
    tail -n 20 "$log" >&2
    fail "apt-get failed (all of its output: $log). Check the network and /etc/apt/sources.list, and that you are root or may use sudo; then run this again."
  fi
}

# pip_install NAME ARGUMENTS...: once for each content of ARGUMENTS and of the files named in them.
pip_install() {
  local name=$1 stamp=$venv/$1.stamp wanted
  shift
  wanted=$({ python3 --version; printf '%s\n' "$@"; for file in "$@"; do [[ ! -f $file ]] || cat "$file"; done; } | sha256sum)
  if [[ -f $stamp && $(<"$stamp") == "$wanted" ]]; then return 0; fi
  printf 'Installing Python packages (%s) into %s\n' "$name" "${venv#"$root"/}"
  mkdir -p "$root/build"
  if ! { { [[ -x $venv/bin/pip ]] || python3 -m venv "$venv"; } &&
         "$venv/bin/pip" install --quiet --disable-pip-version-check --retries 5 "$@"; } >"$log" 2>&1 </dev/null; then
    tail -n 20 "$log" >&2
    fail "pip failed (all of its output: $log). Check the network and PIP_INDEX_URL; then run this again. If $venv is damaged, delete it."
  fi
  printf '%s\n' "$wanted" >"$stamp"
}

set_name=tests cuda=no
for argument in "$@"; do
  case $argument in
    --build | --tests | --ci) set_name=${argument#--} ;;
    --cuda) cuda=yes ;;
    --help | -h) usage; exit 0 ;;
    *) usage >&2; fail "unknown argument '$argument'." ;;
  esac
done

[[ -n $(command -v dpkg-query) && -n $(command -v apt-get) ]] ||
  fail "this system has no apt: install what corresponds to these Debian 12 packages: ${build_packages[*]} ${test_packages[*]}"

packages=("${build_packages[@]}")
[[ $set_name == build ]] || packages+=("${test_packages[@]}")
[[ $set_name != ci ]] || packages+=("${ci_packages[@]}")
[[ $cuda == no ]] || packages+=(python3 python3-venv)
install_packages "${packages[@]}"

if [[ $set_name != build && -f $root/tests/requirements.txt ]]; then
  pip_install tests -r "$root/tests/requirements.txt"
fi
if [[ $cuda == yes ]] && ! command -v nvcc >/dev/null && [[ ! -x /usr/local/cuda/bin/nvcc ]]; then
  pip_install cuda 'nvidia-cuda-nvcc==13.0.*' 'nvidia-cuda-crt==13.0.*' 'nvidia-nvvm==13.0.*' \
    'nvidia-cuda-runtime==13.0.*' 'nvidia-cuda-cccl==13.0.*'
  # nvcc looks for its libraries in lib64.
  for toolkit in "$venv"/lib/python3*/site-packages/nvidia/cu13; do ln -sfn lib "$toolkit/lib64"; done
fi
