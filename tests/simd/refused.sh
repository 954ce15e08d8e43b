#!/bin/sh
# refused.sh SIMD_TESTS: what happens where the operating system refuses AMX. SKIPPED (77) where the processor has none.
set -eu
if ! KVC_ISA=amx "$1" "[level]" >/dev/null; then
  echo "SKIPPED: no amx here"
  exit 77
fi
"$1" "[refused]"
"$1" "[unasked]"
