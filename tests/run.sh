#!/bin/sh
# run.sh [CTEST ARGUMENTS]: from nothing but a checkout to tested: installs what is missing, builds, runs every test.
#   sh tests/run.sh -R codec     only the tests whose name contains codec
#   KVC_LLAMA=1 sh tests/run.sh  builds llama.cpp too, for the tests of what serves it
set -eu
cd "$(dirname "$0")/.."

sh cmake/setup.sh
if [ "${KVC_LLAMA:-}" = 1 ]; then # slow: the tests of kvc/llama.hpp are SKIPPED without
  sh cmake/fetch_llama.sh
fi
cmake --preset release
cmake --build --preset release
sh cmake/fetch_model.sh || echo "The tests that need the model will be SKIPPED." >&2
exec ctest --preset release -j2 "$@"
