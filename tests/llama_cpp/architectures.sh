#!/bin/sh
# architectures.sh PROGRAM FOLDER TEXT [ARGUMENT...]: what kvc does to the logits of every GGUF file in FOLDER. For each
# it prints the largest difference between an exact cache and llama.cpp's own in f32, or why kvc refuses the model.
# PROGRAM is llama_compare; ARGUMENTs are more of its options. A folder of tiny random models of all architectures is
# made by llama.cpp's own program: test-llama-archs -o FOLDER.
set -eu
program=$1
folder=$2
text=$3
shift 3
case " $* " in
  *" --prompt "*) ;;
  *) set -- --prompt 96 "$@" ;;
esac

served=0
refused=0
broken=0
for model in "$folder"/*.gguf; do
  name=$(basename "$model" .gguf)
  code=0
  output=$("$program" --model "$model" --text "$text" --policies full:type=f32 --own f32-plain --dense f32 \
    --decode 16 --offset 0 --batch 32 --threads 1 "$@" 2>&1) || code=$?
  case $code in
    0)
      echo "$name: served, $(echo "$output" | sed -n 's/^llama.cpp f32-plain .* \(logit .*\)/\1/p')"
      served=$((served + 1))
      ;;
    2)
      echo "$name: $(echo "$output" | sed -n 's/^llama_compare: //p' | tail -n 1)"
      refused=$((refused + 1))
      ;;
    *)
      echo "$name: ended with $code: $(echo "$output" | tail -n 1)"
      broken=$((broken + 1))
      ;;
  esac
done
echo "$served served, $refused refused, $broken broken"
