#!/bin/sh
# mixed_flags.sh COMPILER FOLDER: two files of one program use the library header-only, one built for any x86-64 processor and
# one for Haswell, whose functions are never called. Linked in either order, the program runs on an emulated Nehalem, which has
# none of Haswell's instructions. The two files share no function of the library, and a type of the library does not pass
# between them: such a program fails to link. SKIPPED (77) on other machines and without qemu-user.
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

$compiler -std=c++20 -O2 -I"$include" -c "$sources/old_machine.cpp" -o old_machine.o
$compiler -std=c++20 -O2 -march=haswell -I"$include" -c "$sources/new_machine.cpp" -o new_machine.o
for order in "old_machine.o new_machine.o" "new_machine.o old_machine.o"; do
  # shellcheck disable=SC2086 # two files on purpose
  $compiler $order -o program -pthread
  qemu-x86_64 -cpu Nehalem ./program || {
    echo "linked as $order, the program ended with $? on a Nehalem"
    exit 1
  }
done

# What both files define is shared by them. Of the library that may be one variable, whose tag is deliberately missing.
for file in old_machine new_machine; do
  nm -C "$file.o" | sed -n 's/^[0-9a-f]* [VWuvw] //p' | sort -u >$file.shared
done
comm -12 old_machine.shared new_machine.shared >both.shared
if grep 'kvc::' both.shared | grep -vx 'kvc::process::isa_in_use'; then
  echo "these symbols of the library are defined by both files"
  exit 1
fi

$compiler -std=c++20 -O2 -I"$include" -c "$sources/gives.cpp" -o gives.o
$compiler -std=c++20 -O2 -march=haswell -I"$include" -c "$sources/takes.cpp" -o takes.o
if $compiler gives.o takes.o -o mixed 2>mixed.txt; then
  echo "a type of the library passed between files that were built for different machines"
  exit 1
fi
grep 'kvc::v[0-9_]*' mixed.txt
