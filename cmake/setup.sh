#!/bin/sh
# setup.sh [PACKAGE:COMMAND...]: installs what building, testing and the demo need and this machine lacks, and each
# Debian package named whose command is missing. Installs through apt-get, as root or by sudo; on other systems prints
# the line to run and exits 2. When nothing is missing it touches nothing and needs no network.
set -eu

missing=""
want() { # want PACKAGE TEST...: notes PACKAGE as missing unless TEST succeeds
  package=$1
  shift
  "$@" >/dev/null 2>&1 || missing="$missing $package"
}
header() { # header NAME...: is one of these on the compiler's include path or in its usual places?
  for name in "$@"; do
    for folder in /usr/include /usr/local/include /opt/homebrew/include; do
      [ -e "$folder/$name" ] && return 0
    done
  done
  return 1
}
compiler_knows_cxx20() {
  echo '#include <span>' | c++ -std=c++20 -fsyntax-only -x c++ -
}
cmake_is_new_enough() { # presets of version 3
  version=$(cmake --version | sed -n '1s/[^0-9]*\([0-9]*\)\.\([0-9]*\).*/\1 \2/p')
  # shellcheck disable=SC2086 # two words on purpose
  set -- $version 0 0
  [ "$1" -gt 3 ] || [ "$2" -ge 21 ]
}

want cmake cmake_is_new_enough
want ninja-build command -v ninja
want g++ compiler_knows_cxx20
want python3 command -v python3
want python3-pip python3 -m pip --version
want ca-certificates test -d /etc/ssl/certs
want libeigen3-dev header eigen3/Eigen/Core Eigen/Core
want catch2 header catch2/catch.hpp catch2/catch_all.hpp
want libfmt-dev header fmt/core.h
want nlohmann-json3-dev header nlohmann/json.hpp
want libbenchmark-dev header benchmark/benchmark.h
for extra in "$@"; do
  want "${extra%:*}" command -v "${extra#*:}"
done
[ -n "$missing" ] || exit 0

as_root=""
[ "$(id -u)" = 0 ] || as_root=sudo
if command -v apt-get >/dev/null && { [ -z "$as_root" ] || command -v sudo >/dev/null; }; then
  echo "setup: installing$missing"
  $as_root apt-get update -q
  # shellcheck disable=SC2086 # a list on purpose
  $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $missing
  if ! cmake_is_new_enough || ! compiler_knows_cxx20; then
    echo "setup: this system's packages are too old; needed: cmake 3.21, a C++20 compiler (g++ 12, clang++ 14)" >&2
    exit 2
  fi
  exit 0
fi

cat >&2 <<END
setup: missing:$missing
Please run the line of your system, then start again:
  Debian: sudo apt-get install$missing
  Fedora: sudo dnf install cmake ninja-build gcc-c++ python3-pip eigen3-devel catch-devel fmt-devel json-devel google-benchmark-devel
  macOS:  brew install cmake ninja python eigen catch2 fmt nlohmann-json google-benchmark
END
exit 2
