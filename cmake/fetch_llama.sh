#!/bin/sh
# fetch_llama.sh: builds llama.cpp for the examples and tests that use kvc/llama.hpp, and prints the folder that it is
# installed to: build/llama, or the one that KVC_LLAMA_FOLDER names, to keep it between checkouts. Does nothing when it
# is there. It is the llama.cpp inside PyPI's llama-cpp-python: libllama and ggml's CPU backend, nothing else. On two
# cores it takes a few minutes; JOBS says how many processes at once.
set -eu
cd "$(dirname "$0")/.."

version=0.3.36
sha256=832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e
folder=${KVC_LLAMA_FOLDER:-$PWD/build/llama}
if [ "$(cat "$folder/version" 2>/dev/null)" = "$version" ]; then
  echo "$folder"
  exit 0
fi

mkdir -p "$folder"
work=$(mktemp -d "$folder/fetch.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM

echo "fetching llama-cpp-python $version (73 MB)..." >&2
if ! python3 -m pip download --quiet --disable-pip-version-check --no-deps --no-binary llama-cpp-python \
    --dest "$work" "llama-cpp-python==$version" >&2; then
  echo "fetch_llama: could not download llama-cpp-python $version" >&2
  exit 1
fi
if ! echo "$sha256  $work/llama_cpp_python-$version.tar.gz" | sha256sum --check --status; then
  echo "fetch_llama: llama_cpp_python-$version.tar.gz is not the expected file (SHA-256)" >&2
  exit 1
fi
tar -xzf "$work"/llama_cpp_python-*.tar.gz -C "$work"
source=$(echo "$work"/llama_cpp_python-*/vendor/llama.cpp)

# Without OpenMP ggml's threads are its own. They sleep between two graphs, so that they do not run beside what the
# program does.
launcher=""
command -v ccache >/dev/null && launcher="-DCMAKE_C_COMPILER_LAUNCHER=ccache -DCMAKE_CXX_COMPILER_LAUNCHER=ccache"
# shellcheck disable=SC2086 # several flags on purpose
cmake -G Ninja -S "$source" -B "$work/build" -DCMAKE_BUILD_TYPE=Release -DCMAKE_INSTALL_PREFIX="$folder" \
  -DCMAKE_INSTALL_LIBDIR=lib -DCMAKE_INSTALL_RPATH="\$ORIGIN" -DBUILD_SHARED_LIBS=ON \
  -DGGML_NATIVE=ON -DGGML_OPENMP=OFF -DGGML_CCACHE=OFF -DLLAMA_BUILD_COMMON=OFF -DLLAMA_BUILD_TESTS=OFF \
  -DLLAMA_BUILD_TOOLS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_SERVER=OFF -DLLAMA_BUILD_APP=OFF -DLLAMA_CURL=OFF \
  -DLLAMA_OPENSSL=OFF $launcher >&2
cmake --build "$work/build" --parallel "${JOBS:-$(getconf _NPROCESSORS_ONLN)}" >&2
cmake --install "$work/build" >&2
echo "$version" >"$folder/version"
echo "$folder"
