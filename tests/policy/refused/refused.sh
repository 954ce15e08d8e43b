#!/bin/sh
# refused.sh COMPILER...: every file here must fail to compile with the message in its first line, or compile if that says so.
set -eu
cd "$(dirname "$0")"
messages=$(mktemp)
trap 'rm -f "$messages"' EXIT
status=0
for file in *.cpp; do
  expected=$(sed -n '1s|^// refused: ||p' "$file")
  if "$@" -std=c++20 -fsyntax-only -I../../../include "$file" 2>"$messages"; then compiled=yes; else compiled=no; fi
  if [ -z "$expected" ] && [ $compiled = yes ]; then continue; fi
  if [ -n "$expected" ] && [ $compiled = no ] && grep -qE "$expected" "$messages"; then continue; fi
  echo "FAILED: $file: expected ${expected:-to compile}, compiled: $compiled"
  cat "$messages"
  status=1
done
exit $status
