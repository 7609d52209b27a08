#!/usr/bin/env bash
# Follows the log of the launched command on worker 0, or on worker N, until interrupted.
#
#   logs.sh [--worker=N] [--dry-run]
#
# Settings: TPU_NAME TPU_ZONE TPU_PROJECT [TPU_SSH_FLAGS]

source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
parse "--worker" "$@"
[[ $worker =~ ^[0-9]+$ ]] || die "--worker=$worker: the number of one host is wanted"

# With a terminal on the host, Ctrl-C ends the remote `tail` too.
TPU_SSH_FLAGS="${TPU_SSH_FLAGS:-} --ssh-flag=-t"
on_hosts "$worker" "tail -n 100 -F rdjax-run/log"
