#!/bin/sh
# header_only.sh COMPILER FOLDER: the quick start builds with nothing but -std=c++20 -O2 and the include path, and runs.
# It also compiles without exceptions and without type information. A second file of the same program, built for another
# machine, must neither clash with the first nor change it.
set -eu
sources=$(cd "$(dirname "$0")" && pwd)
include=$sources/../../include
compiler=$1
mkdir -p "$2"
cd "$2"

$compiler -std=c++20 -O2 -I"$include" "$sources/quick_start.cpp" -o quick_start -pthread
./quick_start >alone.txt
grep -q . alone.txt

$compiler -std=c++20 -O1 -fno-exceptions -fno-rtti -I"$include" -fsyntax-only "$sources/quick_start.cpp"

other=-O1
case $(uname -m) in x86_64) grep -q avx2 /proc/cpuinfo 2>/dev/null && other="-O3 -mavx2 -mfma" ;; esac
# shellcheck disable=SC2086 # several flags on purpose
$compiler -std=c++20 $other -I"$include" -c "$sources/second_file.cpp" -o second_file.o
$compiler -std=c++20 -O2 -DKVC_TWO_FILES -I"$include" "$sources/quick_start.cpp" second_file.o -o two_files -pthread
./two_files >together.txt
cmp alone.txt together.txt
cat alone.txt
