#!/bin/sh
# bits32.sh FOLDER: builds what counts bytes and indexes memory (codecs, storage, attention over whole caches) for 32-bit x86 in
# FOLDER and runs its tests. SKIPPED (77) where the compiler cannot link for it (Debian: apt-get install g++-12-multilib).
set -eu
library=$(cd "$(dirname "$0")/../.." && pwd)
compiler=${CXX:-c++}
folder=$1
mkdir -p "$folder"
printf '#include <span>\nint main() { return sizeof(void*) != 4; }\n' >"$folder/probe.cpp"
if ! $compiler -m32 -std=c++20 "$folder/probe.cpp" -o "$folder/probe" 2>"$folder/probe.txt" || ! "$folder/probe"; then
  echo "SKIPPED: $compiler cannot build 32-bit programs"
  exit 77
fi

# The kernel's headers: Debian keeps them for both widths in one folder, which only g++-multilib itself links to.
flags="-m32 -msse2 -mfpmath=sse -idirafter /usr/include/$($compiler -print-multiarch)"
${CMAKE:-cmake} -S "$library" -B "$folder" -DCMAKE_BUILD_TYPE=Release -DCMAKE_CXX_FLAGS_RELEASE="-O1 -DNDEBUG" \
  -DCMAKE_CXX_FLAGS="$flags" -DKVC_TEST_FOLDERS="attention;codec;storage" -DKVC_TEST_SCRIPTS=OFF \
  -DKVC_TEST_EXHAUSTIVE=OFF -DKVC_BUILD_TESTS=ON -DKVC_BUILD_EXAMPLES=OFF -DKVC_BUILD_BENCH=OFF
${CMAKE:-cmake} --build "$folder" -j2 --target test_programs
cd "$folder"
${CTEST:-ctest} --output-on-failure --no-tests=error -L unit
