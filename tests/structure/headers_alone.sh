#!/bin/sh
# headers_alone.sh alone|together COMPILER [FLAG...]: compiles every public header, twice included, with all warnings as errors.
#   alone      each without what it does not include itself. KVC_COMPILED is defined, so that no header gets what it
#              lacks from the library's inside; headers that are different without it are compiled without it too.
#   together   all in one file
set -eu
cd "$(dirname "$0")/../../include"
way=$1
shift

export COMPILE="$* -std=c++20 -fsyntax-only -I. -Wall -Wextra -Wconversion -Wshadow -Werror -x c++ -"
# *-inl.hpp files are parts that another header includes many times, never included by users.
headers=$(find kvc -name '*.hpp' ! -name '*-inl.hpp' | sort)
# shellcheck disable=SC2086 # several flags on purpose
if ! echo '#include <llama.h>' | $COMPILE 2>/dev/null; then
  echo "without llama.cpp's headers: kvc/llama.hpp and its parts are not compiled"
  headers=$(echo "$headers" | grep -v '^kvc/llama[./]')
fi

if [ "$way" = together ]; then
  for time in first second; do printf '#include <%s>\n' $headers; done | grep -v openmp_executor | {
    echo "#define KVC_COMPILED"
    cat
  } | $COMPILE
  echo "all compile together"
  exit 0
fi

# A header that includes another may stand behind it in one file: it sees nothing there that it does not include itself.
# So headers are compiled in chains, each of which includes the one before it, and what they have in common is read
# once. Prints one chain a line, behind its flag. An include between #if and #endif does not count, for it may not be in
# force.
chains() { # chains FLAG HEADER...
  flag=$1
  shift
  awk -v flag="$flag" -v list="$*" '
    FNR == 1 { depth = 0 }
    /^ *# *if/ { ++depth }
    /^ *# *endif/ { --depth }
    /^ *# *include *[<"]kvc\// && !depth {
      split($0, part, /[<">]/)
      includes[FILENAME] = includes[FILENAME] " " part[2]
    }
    function reach(from, header,  n, i, names) { # notes what header includes, through others too
      n = split(includes[header], names, " ")
      for (i = 1; i <= n; ++i)
        if (!((from, names[i]) in below)) { below[from, names[i]] = 1; ++size[from]; reach(from, names[i]) }
    }
    function largest(above,  i, best) { # the untaken header with most below it; if above is a header, of those below it
      best = ""
      for (i = 1; i <= count; ++i)
        if (!(want[i] in taken) && (above == "" || (above, want[i]) in below))
          if (best == "" || size[want[i]] > size[best]) best = want[i]
      taken[best] = 1
      return best
    }
    END {
      count = split(list, want, " ")
      for (i = 1; i <= count; ++i) reach(want[i], want[i])
      while ((top = largest("")) != "") {
        chain = top
        while ((top = largest(top)) != "") chain = top " " chain
        print flag, chain
      }
    }' $headers
}

# shellcheck disable=SC2086 # lists of headers
different=$(grep -l KVC_COMPILED $headers | grep -v '/implementation\.hpp$')
processors=$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1)
list=$(chains -DKVC_COMPILED $headers && chains -UKVC_COMPILED $different)
printf '%s\n' "$list" | tr '\n' '\0' | xargs -0 -P "$processors" -n 1 sh -c '
  set -- $1
  flag=$1
  shift
  case $* in *openmp_executor.hpp*) COMPILE="$COMPILE -fopenmp" ;; esac
  for time in first second; do printf "#include <%s>\n" "$@"; done | $COMPILE "$flag" || {
    echo "FAILED with $flag, one after the other: $*"
    exit 1
  }' chain
echo "all compile alone, in $(printf '%s\n' "$list" | wc -l) files"
