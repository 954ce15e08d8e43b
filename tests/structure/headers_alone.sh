#!/bin/sh
# headers_alone.sh COMPILER [FLAG...]: compiles every public header alone, twice included, with all warnings as errors.
set -eu
cd "$(dirname "$0")/../../include"

export COMPILE="$* -std=c++20 -fsyntax-only -I. -Wall -Wextra -Wconversion -Wshadow -Werror -x c++ -"
processors=$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1)
# *-inl.hpp files are parts that another header includes many times, never included by users.
find kvc -name '*.hpp' ! -name '*-inl.hpp' | sort | xargs -P "$processors" -n 1 sh -c '
  define=""
  case $1 in
    */implementation.hpp) define="#define KVC_COMPILED" ;;
    */openmp_executor.hpp) COMPILE="$COMPILE -fopenmp" ;;
  esac
  printf "%s\n#include <%s>\n#include <%s>\n" "$define" "$1" "$1" | $COMPILE || { echo "FAILED: $1"; exit 1; }' header
echo "all compile alone"
