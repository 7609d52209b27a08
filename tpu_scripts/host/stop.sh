#!/usr/bin/env bash
# Runs on a host: sends SIGTERM to the command and its children, if one runs.

set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
state=$(bash "$here/status.sh")
if [[ $state == *" running" ]]; then kill -TERM -- "-$(cat "$HOME/rdjax-run/pid")"; fi
echo "$state"
