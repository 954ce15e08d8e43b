#!/bin/sh
# program.sh KERNELS [FLAG...]: kvc/c_api.h is plain C99, and a program that a C compiler built with it runs. KERNELS is the library of
# kvc::compiled. SKIPPED (77) where there is no C compiler.
set -eu
library=$(cd "$(dirname "$0")/../.." && pwd)
kernels=$1
compiler=${CC:-cc}
if ! command -v "$compiler" >/dev/null; then
  echo "SKIPPED: no C compiler"
  exit 77
fi
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
warnings="-Wall -Wextra -Wconversion -Wshadow -Wpedantic -Wstrict-prototypes -Werror"
# shellcheck disable=SC2086 # several flags on purpose
"$compiler" -std=c99 -O2 $warnings -I"$library/include" "$library/examples/c/decode.c" "$kernels" -lstdc++ -lm -lpthread -o "$folder/decode"
"$folder/decode" "h2o:budget=64 | kivi:bits=4" | tee "$folder/out"
grep -q "320 tokens in [0-9]* bytes" "$folder/out"
if "$folder/decode" "h2o:bugdet=64" 2>"$folder/error"; then
  echo "a policy with a wrong parameter was accepted"
  exit 1
fi
grep -q "bugdet" "$folder/error"
