#!/bin/sh
# readme.sh COMPILER FOLDER: every C++ block of README.md compiles as it stands there, with the flags that it names. A
# block with a main() is a program: it is run as well, and says how much smaller the cache is. A block without one is
# pasted into a main() that has a shape.
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
compiler=$1
mkdir -p "$2"
cd "$2"
rm -f block*

awk '/^```cpp$/ { inside = 1; ++count; next }
     /^```/     { inside = 0 }
     inside     { print > ("block" count ".cpp") }
     END        { print count + 0 }' "$root/README.md" >count.txt
[ "$(cat count.txt)" -ge 2 ] || { echo "FAILED: README.md has $(cat count.txt) C++ blocks"; exit 1; }

for block in block*.cpp; do
  echo "$block"
  if grep -q '^int main()' "$block"; then
    $compiler -std=c++20 -O0 -I "$root/include" "$block" -o program -pthread
    ./program | tee output.txt
    grep -q ' times smaller than fp16$' output.txt
  else
    {
      printf '#include <kvc/kvc.hpp>\n#include <limits>\n#include <span>\nint main() {\nconst kvc::CacheShape shape;\n'
      cat "$block"
      printf '}\n'
    } >pasted.cpp
    $compiler -std=c++20 -I "$root/include" -fsyntax-only pasted.cpp
  fi
done
