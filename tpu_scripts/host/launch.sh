#!/usr/bin/env bash
# Runs on a host: launch.sh COMMAND [ARGUMENT...]. Starts the command in the background, unless one runs.

set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
folder=$HOME/rdjax-run
mkdir -p "$folder"

# The command inherits the lock, and its last process releases it. A pid is not enough: after a reset of the host it may
# belong to another process.
exec 9>"$folder/lock"
if ! flock -w 0.2 9; then # status.sh takes the lock for a moment
  echo "error: $(hostname): a command still runs: $(cat "$folder/command")" >&2
  exit 1
fi

rm -f "$folder/status"
printf '%q ' "$@" >"$folder/command"
cd "$HOME/rdjax"
export PATH=$HOME/rdjax-venv/bin:$PATH
# In a new session, so that it survives the end of the connection; the id of its process group is the pid.
setsid bash "$here/run.sh" "$@" </dev/null >>"$folder/log" 2>&1 &
echo $! >"$folder/pid"
