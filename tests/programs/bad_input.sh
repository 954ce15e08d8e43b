#!/bin/sh
# bad_input.sh COMPARE GENERATE ANALYZE TEXT [MODEL]: what users get wrong ends with exit code 2, a message that says what, no table,
# and no file written. Cases that need the model are left out where it is missing.
set -eu
compare=$1 generate=$2 analyze=$3 text=$4 model=${5:-}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
tried=0

refused() { # refused WORD COMMAND...: exit code 2, WORD in the message, nothing on standard output
  word=$1
  shift
  code=0
  "$@" >"$work/out" 2>"$work/err" || code=$?
  if [ "$code" -ne 2 ] || [ -s "$work/out" ] || ! grep -qi -- "$word" "$work/err"; then
    echo "FAILED (exit code $code, expected 2 and '$word'): $*"
    cat "$work/out" "$work/err"
    exit 1
  fi
  tried=$((tried + 1))
}

printf 'GGUF' >"$work/cut.gguf"
printf 'PK\003\004 not a model at all' >"$work/foreign.gguf"
refused "nothing.gguf" "$compare" --model "$work/nothing.gguf" --text "$text"
refused "gguf" "$compare" --model "$work/cut.gguf" --text "$text" --json "$work/result.json"
refused "gguf" "$generate" --model "$work/foreign.gguf" --prompt "Hello"
refused "--modell" "$compare" --modell "$work/cut.gguf" --text "$text"
refused "no/such.txt" "$generate" --model "$work/cut.gguf" --prompt "Hello" --context "$work/no/such.txt"
refused "snapvk" "$compare" --model "$work/cut.gguf" --text "$text" --policies "snapvk"
refused "windw" "$generate" --model "$work/cut.gguf" --prompt "Hello" --policy "snapkv:windw=4"
refused "layers" "$analyze"
refused "layers" "$analyze" layer --model "$work/cut.gguf" --text "$text"
refused "gguf" "$analyze" layers --model "$work/cut.gguf" --text "$text"
refused "no/such.txt" "$analyze" layers --model "$work/cut.gguf" --text "$work/no/such.txt"
mkfifo "$work/pipe"
refused "regular file" "$compare" --model "$work/pipe" --text "$text"
refused "nobody reads" "$compare" --model "$work/cut.gguf" --text "$text" --json "$work/pipe"
refused "more than" "$compare" --model "$work/cut.gguf" --text /dev/zero

if [ -n "$model" ] && [ -f "$model" ]; then
  head -c 1000000 "$model" >"$work/truncated.gguf"
  refused "gguf" "$compare" --model "$work/truncated.gguf" --text "$text"
  refused "context" "$compare" --model "$model" --text "$text" --prompt 9000 --json "$work/result.json"
  refused "window" "$compare" --model "$model" --text "$text" --policies "snapkv:budget=16,window=32"
  refused "tokens" "$analyze" layers --model "$model" --text "$text" --offset 1000000
  refused "context" "$analyze" layers --model "$model" --text "$text" --tokens 9000
  refused "no/such" "$compare" --model "$model" --text "$text" --json "$work/no/such/result.json"
fi
[ ! -e "$work/result.json" ] || { echo "FAILED: a result file was written"; exit 1; }
echo "$tried mistakes refused"
