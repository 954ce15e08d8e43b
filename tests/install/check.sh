#!/bin/sh
# check.sh WAY FOLDER: builds and runs the consumer against the library, taken in one WAY, in FOLDER, which is emptied
# first.
#   add_subdirectory   the library's folder inside the user's project
#   find_package       installed by "cmake -S . -B b && cmake --install b" without the tools of the project's own
#                      programs, which is a Release build, and then moved elsewhere; version 99 and components that are
#                      not there are refused
#   compiled           installed with the kernels compiled once, linked as kvc::compiled
#   pkg_config         the compiler called with what pkg-config says, for kvc and for kvc-compiled, of what the way
#                      `compiled` installed in FOLDER, which is not emptied
# Environment: CMAKE (default cmake), CMAKE_GENERATOR, CXX.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
library=$(cd "$here/../.." && pwd)
way=$1
folder=$2
cmake=${CMAKE:-cmake}
[ "$way" = pkg_config ] || rm -rf "$folder"
mkdir -p "$folder"
cd "$folder"

# What is tested is that it builds, is found and links; how fast the code is, other tests look at.
quick="-DCMAKE_CXX_FLAGS_RELEASE=-O0"
install_library() { # install_library [CMAKE ARGUMENT...]: to $folder/moved, built for $folder/prefix
  $cmake -S "$library" -B library -DCMAKE_INSTALL_PREFIX="$folder/prefix" $quick "$@"
  $cmake --build library
  $cmake --install library
  mv prefix moved
}
consume() { # consume [CMAKE ARGUMENT...]
  $cmake -S "$here/consumer" -B consumer -DCMAKE_BUILD_TYPE=Release $quick "$@"
  $cmake --build consumer
  consumer/consumer
}
refuse() { # refuse SENTENCE CMAKE_ARGUMENT...: configuring the consumer fails and says SENTENCE, however it is wrapped
  sentence=$1
  shift
  if $cmake -S "$here/consumer" -B refused -DCMAKE_PREFIX_PATH="$folder/moved" "$@" >refused.txt 2>&1; then
    echo "accepted: $*"
    exit 1
  fi
  tr -s '\n ' '  ' <refused.txt | grep -qF "$sentence" || {
    cat refused.txt
    echo "FAILED: the message for $* is not: $sentence"
    exit 1
  }
}

case $way in
  add_subdirectory)
    consume -DKVC_SOURCE="$library"
    ;;
  find_package)
    install_library -DCMAKE_DISABLE_FIND_PACKAGE_Catch2=ON -DCMAKE_DISABLE_FIND_PACKAGE_Eigen3=ON \
      -DCMAKE_DISABLE_FIND_PACKAGE_fmt=ON -DCMAKE_DISABLE_FIND_PACKAGE_benchmark=ON
    grep -qE '^(CMAKE_BUILD_TYPE:STRING=Release$|CMAKE_CONFIGURATION_TYPES:)' library/CMakeCache.txt
    consume -DCMAKE_PREFIX_PATH="$folder/moved" -DKVC_WANTED=0.1
    refuse 'compatible with requested version "99"' -DKVC_WANTED=99
    refuse 'installed without its compiled kernels; configure it with -DKVC_COMPILED=ON' -DKVC_WANTED=0.1 \
      -DKVC_COMPONENTS=compiled
    refuse 'kvc has no component "tiles"' -DKVC_WANTED=0.1 -DKVC_COMPONENTS=tiles
    ;;
  compiled)
    install_library -DKVC_COMPILED=ON
    consume -DCMAKE_PREFIX_PATH="$folder/moved" -DKVC_LIBRARY=kvc::compiled -DKVC_COMPONENTS=compiled
    ;;
  pkg_config)
    command -v pkg-config >/dev/null || exit 77
    PKG_CONFIG_PATH=$(dirname "$(find "$folder/moved" -name kvc.pc)")
    export PKG_CONFIG_PATH
    for package in kvc kvc-compiled; do
      # shellcheck disable=SC2046 # several flags on purpose
      ${CXX:-c++} -std=c++20 -O0 "$here/consumer/main.cpp" -o by_pkg_config $(pkg-config --cflags --libs $package)
      ./by_pkg_config
    done
    ;;
  *)
    echo "unknown way: $way"
    exit 1
    ;;
esac
