#!/bin/sh
# headers_alone.sh alone|together COMPILER [FLAG...]: compiles every public header, twice included, with all warnings as errors.
#   alone      each in a file of its own. KVC_COMPILED is defined, so that no header gets what it lacks from the library's inside;
#              headers that are different without it are compiled without it too.
#   together   all in one file
set -eu
cd "$(dirname "$0")/../../include"
way=$1
shift

export COMPILE="$* -std=c++20 -fsyntax-only -I. -Wall -Wextra -Wconversion -Wshadow -Werror -x c++ -"
# *-inl.hpp files are parts that another header includes many times, never included by users.
headers=$(find kvc -name '*.hpp' ! -name '*-inl.hpp' | sort)

if [ "$way" = together ]; then
  for time in first second; do printf '#include <%s>\n' $headers; done | grep -v openmp_executor | {
    echo "#define KVC_COMPILED"
    cat
  } | $COMPILE
  echo "all compile together"
  exit 0
fi

processors=$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1)
for header in $headers; do
  echo "-DKVC_COMPILED $header"
  case $header in */implementation.hpp) continue ;; esac
  if grep -q KVC_COMPILED "$header"; then echo "-UKVC_COMPILED $header"; fi
done | xargs -P "$processors" -n 2 sh -c '
  case $2 in */openmp_executor.hpp) COMPILE="$COMPILE -fopenmp" ;; esac
  printf "#include <%s>\n#include <%s>\n" "$2" "$2" | $COMPILE "$1" || { echo "FAILED: $2 with $1"; exit 1; }' header
echo "all compile alone"
