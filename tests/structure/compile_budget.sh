#!/bin/sh
# compile_budget.sh COMPILER FOLDER: what one file of a user costs to compile with g++, in FOLDER, against the budgets
# below. SKIPPED (77) with other compilers, and without GNU time, which tells the memory of a process that has ended
# (Debian: apt-get install time).
#
# Seconds are a processor's, divided by those of compile_budget/calibration.cpp in the same run, so that a budget holds
# on slow and on busy machines. A case that is over its seconds is tried twice more, each time next to a calibration of
# its own, for a machine may become busy in between. Megabytes are the compiler's peak, kilobytes the object's code and
# constants. What g++ 12 took at -O2 on 2026-11-28, when the calibration took 3.9 s: 1.38, 4.42, 0.45, 0.64 and 0.46
# times the calibration; 484, 665, 269, 310 and 283 MB; 0, 398, 0, 17.2 and 0.1 KB. The budgets leave room for the noise
# of machines. The code of `use` is at its budget: who adds to it makes room first.
# A file that only includes the library must have no code at all.
#
#   case               source         flags            ratio   MB   KB
budgets='
    include            include        -                 1.50  532    0
    use                header_only    -                 4.65  776  400
    compiled_include   include        -DKVC_COMPILED    0.50  295    0
    compiled_use       header_only    -DKVC_COMPILED    0.70  338   19
    compiled_by_name   by_name        -DKVC_COMPILED    0.50  311    1
'
set -eu
sources=$(cd "$(dirname "$0")" && pwd)/compile_budget
include=$sources/../../../include
compiler=$1
$compiler --version | grep -q 'Free Software Foundation' || {
  echo "SKIPPED: the budgets are for g++, not $compiler"
  exit 77
}
clock=/usr/bin/time
$clock -f %M true 2>/dev/null || {
  echo "SKIPPED: no GNU time"
  exit 77
}
export CCACHE_DISABLE=1 # a compiler may be a link to a cache, whose answers cost nothing
mkdir -p "$2"
cd "$2"

compile() { # compile SOURCE [FLAG]: to object.o; into $seconds and $megabytes
  compiled=$1
  shift
  # shellcheck disable=SC2086 # a compiler may have flags
  $clock -o cost.txt -f '%U %S %M' $compiler -std=c++20 -O2 "$@" -I"$include" -c "$sources/$compiled.cpp" -o object.o
  seconds=$(awk '{ print $1 + $2 }' cost.txt)
  megabytes=$(awk '{ printf "%d", $3 / 1024 }' cost.txt)
}
exceeds() { # exceeds NUMBER BUDGET
  awk -v number="$1" -v budget="$2" 'BEGIN { exit !(number > budget) }'
}

compile calibration
calibration=$seconds

row='%-22s %8s %8s %9s %5s %7s %7s %9s\n'
# shellcheck disable=SC2059 # a format on purpose
{
  printf "$row" case seconds ratio budget MB budget KB budget
  printf "$row" calibration "$calibration" 1
}
over=""
while read -r name source flags most_ratio most_megabytes most_kilobytes; do
  [ -n "$name" ] || continue
  [ "$flags" != - ] || flags=""
  tries=3
  while :; do
    # shellcheck disable=SC2086 # no flag or one
    compile "$source" $flags
    used=$seconds
    ratio=$(echo "$used $calibration" | awk '{ printf "%.2f", $1 / $2 }')
    tries=$((tries - 1))
    if [ $tries = 0 ] || ! exceeds "$ratio" "$most_ratio"; then break; fi
    compile calibration
    calibration=$seconds
  done
  kilobytes=$(size object.o | awk 'END { printf "%.1f", $1 / 1000 }')
  # shellcheck disable=SC2059 # a format on purpose
  printf "$row" "$name" "$used" "$ratio" "$most_ratio" "$megabytes" "$most_megabytes" "$kilobytes" "$most_kilobytes"
  ! exceeds "$ratio" "$most_ratio" || over="$over, seconds of $name"
  ! exceeds "$megabytes" "$most_megabytes" || over="$over, memory of $name"
  ! exceeds "$kilobytes" "$most_kilobytes" || over="$over, code of $name"
done <<END
$budgets
END
[ -z "$over" ] || {
  echo "OVER BUDGET: ${over#, }"
  exit 1
}
