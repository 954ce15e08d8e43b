#!/bin/sh
# mixed_flags.sh COMPILER FOLDER: two files of one program use the library header-only, one built for any x86-64
# processor and one for Haswell. The two files share no function of the library. Linked in either order the program says
# what it says without the second file; with the file for older machines first it does so on an emulated Nehalem too,
# which has none of Haswell's instructions, as long as nobody calls the second file. (The other order shares templates
# of the standard library over built-in types, such as std::vector<float>::resize, in Haswell's version: kvc/abi.hpp
# says so to users.) A type of the library does not pass between the files: such a program fails to link. SKIPPED (77)
# on other machines and without qemu-user.
set -eu
sources=$(cd "$(dirname "$0")" && pwd)/mixed_flags
include=${KVC_INCLUDE:-$sources/../../../include}
compiler=$1
[ "$(uname -m)" = x86_64 ] || {
  echo "SKIPPED: not an x86 machine"
  exit 77
}
command -v qemu-x86_64 >/dev/null || {
  echo "SKIPPED: qemu-x86_64 is not installed"
  exit 77
}
mkdir -p "$2"
cd "$2"

# What takes no time first: a type of the library cannot pass between files that were built for different machines.
$compiler -std=c++20 -O2 -I"$include" -c "$sources/gives.cpp" -o gives.o
$compiler -std=c++20 -O2 -march=haswell -I"$include" -c "$sources/takes.cpp" -o takes.o
if $compiler gives.o takes.o -o mixed 2>mixed.txt; then
  echo "a type of the library passed between files that were built for different machines"
  exit 1
fi
grep 'kvc::v[0-9_]*' mixed.txt

$compiler -std=c++20 -O2 -I"$include" -c "$sources/old_machine.cpp" -o old_machine.o
$compiler -std=c++20 -O2 -march=haswell -I"$include" -c "$sources/new_machine.cpp" -o new_machine.o
$compiler old_machine.o -o alone -pthread
./alone >alone.txt
grep -q '^seen 240 tokens$' alone.txt
instructions=$(grep -m 1 '^flags' /proc/cpuinfo 2>/dev/null || true)
for order in "new_machine.o old_machine.o" "old_machine.o new_machine.o"; do
  # shellcheck disable=SC2086 # two files on purpose
  $compiler $order -o program -pthread
  case $instructions in
    *avx2*bmi2*)
      ./program both >both.txt || {
        echo "linked as $order, the program that uses both files ended with $?"
        exit 1
      }
      cmp alone.txt both.txt
      ;;
  esac
done
qemu-x86_64 -cpu Nehalem ./program >emulated.txt || {
  echo "the program ended with $? on a Nehalem"
  exit 1
}
cmp alone.txt emulated.txt

# What both files define is shared by them. Of the library that may be one variable, whose tag is deliberately missing.
for file in old_machine new_machine; do
  nm -C "$file.o" | sed -n 's/^[0-9a-f]* [VWuvw] //p' | sort -u >$file.shared
done
comm -12 old_machine.shared new_machine.shared >both.shared
if grep 'kvc::' both.shared | grep -vx 'kvc::process::isa_in_use'; then
  echo "these symbols of the library are defined by both files"
  exit 1
fi
cat alone.txt
