#!/bin/sh
# with_model.sh MODEL COMMAND...: runs COMMAND with KVC_MODEL=MODEL; without the file, says SKIPPED and exits 77.
KVC_MODEL=${KVC_MODEL:-$1}
export KVC_MODEL
shift
if [ ! -f "$KVC_MODEL" ]; then
  echo "SKIPPED: no model at $KVC_MODEL (sh cmake/fetch_model.sh fetches it)"
  exit 77
fi
exec "$@"
