#!/usr/bin/env bash
# Runs on a host: prints the state of the command: running, its exit status, lost (it was killed) or none.

set -euo pipefail
folder=$HOME/rdjax-run
if [[ -f $folder/status ]]; then
  state=$(cat "$folder/status")
elif [[ ! -f $folder/lock ]]; then
  state=none
elif flock -n "$folder/lock" true; then
  # It may have ended with a status since the look above.
  state=$(cat "$folder/status" 2>/dev/null || echo lost)
else
  state=running
fi
echo "rdjax-status $(hostname) $state"
