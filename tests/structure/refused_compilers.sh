#!/bin/sh
# refused_compilers.sh COMPILER: an older standard, and a machine that stores numbers the other way round, get one error, which is
# the sentence that says what the library needs.
set -eu
cd "$(dirname "$0")/../../include"
messages=$(mktemp)
trap 'rm -f "$messages"' EXIT

refused() { # refused SENTENCE FLAG...
  sentence=$1
  shift
  for header in kvc/kvc.hpp kvc/named/any_policy.hpp kvc/policy/head_table.hpp; do
    if printf '#include <%s>\n' $header | $compiler "$@" -I. -fsyntax-only -x c++ - 2>"$messages"; then
      echo "FAILED: $header was accepted with $*"
      exit 1
    fi
    if ! grep -q "error.*$sentence" "$messages" || [ "$(grep -c 'error:' "$messages")" != 1 ]; then
      echo "FAILED: $header with $*: expected one error: $sentence"
      head -n 40 "$messages"
      exit 1
    fi
  done
}

compiler=$1
refused "kvc needs C++20" -std=c++17
refused "kvc needs C++20" -std=c++14
refused "kvc needs a little-endian machine" -std=c++20 -U__BYTE_ORDER__ -D__BYTE_ORDER__=__ORDER_BIG_ENDIAN__
echo "refused in one sentence each"
