#!/bin/sh
# aarch64.sh FOLDER: builds the tests of everything that knows an instruction set for 64-bit Arm in FOLDER and runs
# them under emulation. SKIPPED (77) where the cross compiler or qemu is missing.
set -eu
library=$(cd "$(dirname "$0")/../.." && pwd)
for tool in aarch64-linux-gnu-g++ qemu-aarch64; do
  command -v $tool >/dev/null || {
    echo "SKIPPED: $tool is not installed"
    exit 77
  }
done

# -O2, as the presets have it: at -O3 Debian's cross compiler breaks on a test (an internal error of its vectoriser).
${CMAKE:-cmake} -S "$library" -B "$1" -DCMAKE_BUILD_TYPE=Release -DCMAKE_CXX_FLAGS_RELEASE="-O2 -DNDEBUG" \
  -DKVC_TEST_FOLDERS="simd;codec" \
  -DCMAKE_TOOLCHAIN_FILE="$library/cmake/aarch64-linux-gnu.cmake" \
  -DKVC_BUILD_TESTS=ON -DKVC_BUILD_EXAMPLES=OFF -DKVC_BUILD_BENCH=OFF
${CMAKE:-cmake} --build "$1" -j2
cd "$1"
${CTEST:-ctest} --output-on-failure --no-tests=error -L unit
# A processor without dot products must not get their kernels: it would stop at the first one.
QEMU_CPU=cortex-a72 qemu-aarch64 -L /usr/aarch64-linux-gnu tests/simd_tests "A row's accurate*,a cap*,ScopedIsa*"
