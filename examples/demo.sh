#!/bin/sh
# demo.sh [COMPARE ARGUMENTS]: from nothing but a checkout to the comparison of the policies on a real language model.
#   sh examples/demo.sh --help                                  what can be asked
#   sh examples/demo.sh --model my.gguf --text my_notes.txt     on your own model and text
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)

model=""
text=""
for argument in "$@"; do
  case $argument in
    --model | --model=*) model=given ;;
    --text | --text=*) text=given ;;
    --help | -h) model=given text=given ;;
  esac
done

# Only the comparison may write to standard output. It runs in the caller's folder, where the caller's files are.
(
  cd "$root"
  sh cmake/setup.sh
  cmake --preset release
  cmake --build --preset release --target compare generate
) >&2
[ -n "$text" ] || set -- --text "$root/examples/data/emma.txt" "$@"
if [ -z "$model" ]; then
  sh "$root/cmake/fetch_model.sh" >&2
  set -- --model "$root/build/model/SmolLM2-135M-Instruct.Q4_1.gguf" "$@"
fi
exec "$root/build/release/examples/compare" "$@"
