#!/usr/bin/env bash
# Runs on a host: prints the state of the command: running, its exit status, lost (it was killed) or none.

set -euo pipefail
folder=$HOME/rdjax-run
if [[ -f $folder/status ]]; then
  state=$(cat "$folder/status")
elif [[ ! -f $folder/lock ]]; then
  state=none
elif flock -n "$folder/lock" true; then
  state=lost
else
  state=running
fi
echo "rdjax-status $(hostname) $state"
