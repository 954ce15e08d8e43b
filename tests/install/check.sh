#!/bin/sh
# check.sh WAY FOLDER: builds and runs the consumer against the library, taken in one WAY. FOLDER is emptied first.
#   add_subdirectory   the library's folder inside the user's project
#   find_package       installed, then the whole installation moved elsewhere; version 99 must be refused
#   compiled           installed with the kernels compiled once, linked as kvc::compiled
#   pkg_config         installed, compiler called with what pkg-config says
# Environment: CMAKE (default cmake), CMAKE_GENERATOR, CXX.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
library=$(cd "$here/../.." && pwd)
way=$1
folder=$2
cmake=${CMAKE:-cmake}
rm -rf "$folder"
mkdir -p "$folder"
cd "$folder"

install_library() { # install_library [CMAKE ARGUMENT...]: to $folder/moved, built for $folder/prefix
  $cmake -S "$library" -B library -DCMAKE_BUILD_TYPE=Release -DKVC_BUILD_TESTS=OFF -DKVC_BUILD_EXAMPLES=OFF \
    -DKVC_BUILD_BENCH=OFF -DCMAKE_INSTALL_PREFIX="$folder/prefix" "$@"
  $cmake --build library
  $cmake --install library
  mv prefix moved
}
consume() { # consume [CMAKE ARGUMENT...]
  $cmake -S "$here/consumer" -B consumer -DCMAKE_BUILD_TYPE=Release "$@"
  $cmake --build consumer
  consumer/consumer
}

case $way in
  add_subdirectory)
    consume -DKVC_SOURCE="$library"
    ;;
  find_package)
    install_library
    consume -DCMAKE_PREFIX_PATH="$folder/moved" -DKVC_WANTED=0.1
    if $cmake -S "$here/consumer" -B refused -DCMAKE_PREFIX_PATH="$folder/moved" -DKVC_WANTED=99 >refused.txt 2>&1; then
      echo "version 99 was accepted"
      exit 1
    fi
    tr -s '\n ' '  ' <refused.txt | grep -q 'compatible with requested version "99"'
    ;;
  compiled)
    install_library -DKVC_COMPILED=ON
    consume -DCMAKE_PREFIX_PATH="$folder/moved" -DKVC_LIBRARY=kvc::compiled
    ;;
  pkg_config)
    command -v pkg-config >/dev/null || exit 77
    install_library
    PKG_CONFIG_PATH=$(dirname "$(find "$folder/moved" -name kvc.pc)")
    export PKG_CONFIG_PATH
    # shellcheck disable=SC2046 # several flags on purpose
    ${CXX:-c++} -std=c++20 -O2 "$here/consumer/main.cpp" -o consumer $(pkg-config --cflags --libs kvc)
    ./consumer
    ;;
  *)
    echo "unknown way: $way"
    exit 1
    ;;
esac
