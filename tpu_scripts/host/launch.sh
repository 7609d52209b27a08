#!/usr/bin/env bash
# On a host: launch.sh COMMAND [ARGUMENT...]. Starts it in the background, unless one runs.

set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
folder=$HOME/rdjax-run
mkdir -p "$folder"

# The command inherits the lock and holds it until its last process ends, also when the host is reset: a pid alone may
# by then be somebody else's.
exec 9>"$folder/lock"
if ! flock -w 0.2 9; then # status.sh holds it for a moment
  echo "error: $(hostname): a command still runs: $(cat "$folder/command")" >&2
  exit 1
fi

rm -f "$folder/status"
printf '%q ' "$@" >"$folder/command"
cd "$HOME/rdjax"
export PATH=$HOME/rdjax-venv/bin:$PATH
# A session of its own, which the end of the connection does not reach; its id is the pid.
setsid bash "$here/run.sh" "$@" </dev/null >>"$folder/log" 2>&1 &
echo $! >"$folder/pid"
