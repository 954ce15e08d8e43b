#!/bin/sh
# guide.sh COMPILER FOLDER: what docs/write_a_policy.md shows is true. A C++ block behind a line "<!-- quoted from: FILE -->"
# stands in that file, letter for letter; all other C++ blocks compile, one after the other; and every static assertion that is
# quoted is one of the library's.
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
compiler=$1
guide=$root/docs/write_a_policy.md
mkdir -p "$2"
cd "$2"
rm -f quoted_* blocks.cpp

awk -v compiled=blocks.cpp '
  /^<!-- quoted from: .* -->$/ { source = $4; next }
  /^```cpp$/ { inside = 1; if (source != "") { block = "quoted_" ++count; print source > block } else ++own; next }
  /^```/     { inside = 0; if (block != "") close(block); block = source = ""; next }
  inside     { print > (block != "" ? block : compiled) }
  END        { if (!count || !own) { print "FAILED: no blocks of one kind"; exit 1 } print count " quoted, " own " compiled" }' "$guide"

for block in quoted_*; do
  file=$root/$(sed -n 1p "$block")
  awk -v block="$block" '
    BEGIN { while ((getline line < block) > 0) if (++n > 1) want = want line "\n" }
    { have = have $0 "\n" }
    END { exit index(have, want) == 0 }' "$file" || { echo "FAILED: $file has no longer:"; sed 1d "$block"; exit 1; }
done

{
  printf '#include <kvc/codec/codec.hpp>\n#include <kvc/kvc.hpp>\n#include <cstring>\n#include <functional>\n#include <numeric>\n'
  printf '#include "%s/examples/own_policy.hpp"\n' "$root"
  cat blocks.cpp
  printf 'void make(const kvc::CacheShape& shape) {\n'
  printf '  kvc::KVCache(shape, HeavyValues{.budget = 512} | kvc::KIVI{.bits = 4});\n'
  printf '  kvc::KVCache(shape, kvc::PerLayer{HeavyValues{}, 2});\n'
  for policy in $(sed -n 's/^struct \([A-Za-z]*\) {$/\1/p' blocks.cpp); do
    printf '  kvc::KVCache(shape, %s{});\n' "$policy"
  done
  printf '}\n'
} >guide.cpp
$compiler -std=c++20 -Wall -Wextra -DKVC_COMPILED -I "$root/include" -fsyntax-only guide.cpp

sed -n 's/^error: static assertion failed: //p' "$guide" >sentences
[ -s sentences ] || { echo "FAILED: no static assertion is quoted"; exit 1; }
while read -r sentence; do
  grep -rqF "\"$sentence\"" "$root/include" || { echo "FAILED: no header says: $sentence"; exit 1; }
done <sentences
