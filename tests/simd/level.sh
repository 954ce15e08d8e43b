#!/bin/sh
# level.sh SIMD_TESTS LEVEL: the kernels of one level against double precision. SKIPPED (77) where the machine, or its operating
# system, has no such level: the programs themselves leave absent levels out without a word.
set -eu
if ! KVC_ISA=$2 "$1" "[level]" >/dev/null; then
  echo "SKIPPED: no $2 here"
  exit 77
fi
KVC_ISA=$2 "$1" "Accurate*,dense_product*,packed_product*"
