#!/bin/sh
# golden_check.sh GOLDEN_CHECK FOLDER: golden_check passes FOLDER, and fails copies of it that were damaged.
set -eu
golden_check=$1 folder=$2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
tried=0

fails() { # fails PATTERN DIR...: exit code 1, a line like PATTERN, and the counts last
  pattern=$1
  shift
  code=0
  "$golden_check" "$@" >"$work/out" 2>&1 || code=$?
  if [ "$code" -ne 1 ] || ! grep -q -- "$pattern" "$work/out" ||
    ! tail -n 1 "$work/out" | grep -q '^[0-9]* passed, [1-9][0-9]* failed, [0-9]* skipped$'; then
    echo "FAILED (exit code $code, expected 1 and a line like '$pattern')"
    cat "$work/out"
    exit 1
  fi
  tried=$((tried + 1))
}
fresh() { # a copy to damage
  rm -rf "$work/copy"
  cp -r "$folder" "$work/copy"
  chmod -R u+w "$work/copy"
}

"$golden_check" "$folder" >"$work/out" || { cat "$work/out"; exit 1; }
tail -n 1 "$work/out" | grep -q '^[1-9][0-9]* passed, 0 failed, [0-9]* skipped$'

# The first float32 output and the first kept indices of the manifest's first case that passed, whatever they are.
name=$(sed -n 's/^PASS //p' "$work/out" | head -n 1)
tensor() { # tensor PATTERN: the file of the first tensor of $name whose path ends so
  find "$folder" -path "*/$name/*" -name "$1" | sort | head -n 1 | sed "s|^$folder/||"
}
output=$(tensor 'out*.bin') kept=$(tensor 'kept_idx.bin') input=$(tensor 'q.bin')
[ -n "$output" ] && [ -n "$kept" ] && [ -n "$input" ]

fresh
printf '\000\000\200\177' | dd of="$work/copy/$output" conv=notrunc 2>"$work/err"
fails "^FAIL $name: out[a-z_]*, worst difference inf, tolerance [0-9.e-]* (element 0, " "$work/copy"
fresh
printf '\001\000\000\077' | dd of="$work/copy/$kept" conv=notrunc 2>"$work/err"
fails "^FAIL $name: kept_idx, worst difference [1-9]" "$work/copy"
fresh
head -c 100 "$folder/$input" >"$work/copy/$input"
fails "^FAIL $name: .*bytes by its shape, but the file has 100" "$work/copy"
fresh
rm "$work/copy/$output"
fails "^FAIL $name: .*cannot be read" "$work/copy"
fresh
head -c 1000 "$folder/manifest.json" >"$work/copy/manifest.json"
fails "^FAIL $work/copy: .*JSON" "$work/copy"
fresh
echo '{"cases": []}' >"$work/copy/manifest.json"
fails "^FAIL $work/copy: .*no cases" "$work/copy"
fails "^FAIL $work/nothing: .*cannot be read" "$work/nothing"
fails "^FAIL $work/nothing: " "$folder" "$work/nothing"
echo "$tried damages found"
