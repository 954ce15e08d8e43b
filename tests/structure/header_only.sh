#!/bin/sh
# header_only.sh COMPILER FOLDER: the quick start builds with nothing but -std=c++20 -O2 and the include path, and runs.
# It also compiles without exceptions and without type information. (cross/mixed_flags.sh has programs of two files.)
set -eu
sources=$(cd "$(dirname "$0")" && pwd)
include=$sources/../../include
compiler=$1
mkdir -p "$2"
cd "$2"

$compiler -std=c++20 -O1 -fno-exceptions -fno-rtti -I"$include" -fsyntax-only "$sources/quick_start.cpp"

$compiler -std=c++20 -O2 -I"$include" "$sources/quick_start.cpp" -o quick_start -pthread
./quick_start | tee quick_start.txt
grep -q '^seen 1025 tokens, compressed [0-9.]* times$' quick_start.txt
