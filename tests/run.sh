#!/bin/sh
# run.sh [CTEST ARGUMENTS]: from nothing but a checkout to tested: installs what is missing, builds, runs every test.
#   sh tests/run.sh -R codec     only the tests whose name contains codec
set -eu
cd "$(dirname "$0")/.."

sh cmake/setup.sh
cmake --preset release
cmake --build --preset release
sh cmake/fetch_model.sh || echo "The tests that need the model will be SKIPPED." >&2
exec ctest --preset release -j2 "$@"
