#!/bin/sh
# x86.sh PROCESSOR PROGRAM [ARGUMENT...]: runs PROGRAM on an emulated x86 processor, such as Nehalem (SSE4, no AVX) or
# Haswell (AVX2). SKIPPED (77) on other machines and without qemu-user.
set -eu
processor=$1
shift
[ "$(uname -m)" = x86_64 ] || {
  echo "SKIPPED: not an x86 machine"
  exit 77
}
command -v qemu-x86_64 >/dev/null || {
  echo "SKIPPED: qemu-x86_64 is not installed"
  exit 77
}
exec qemu-x86_64 -cpu "$processor" "$@"
