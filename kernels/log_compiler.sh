#!/bin/sh
# Runs a compiler and keeps what it said beside its output, as OUTPUT.log: with -Xptxas=-v each kernel's registers and
# spills. Usage: log_compiler.sh COMPILER ARGUMENTS
output= previous=
for argument in "$@"; do
  [ "$previous" != -o ] || output=$argument
  previous=$argument
done
"$@" >"$output.log" 2>&1
code=$?
[ "$code" = 0 ] || cat "$output.log" >&2
exit "$code"
