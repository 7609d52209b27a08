#!/usr/bin/env bash
# Runs on a host, started by launch.sh: runs the command and writes its exit status.

set -uo pipefail
folder=$HOME/rdjax-run
# SIGTERM goes to the whole process group. The command handles it, and this script waits for its status.
trap : TERM
echo "== $(date -u +%Y-%m-%dT%H:%M:%SZ) $(cat "$folder/command")"
"$@"
status=$?
echo "== $(date -u +%Y-%m-%dT%H:%M:%SZ) status $status"
echo "$status" >"$folder/status.new"
mv "$folder/status.new" "$folder/status"
