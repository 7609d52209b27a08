#!/usr/bin/env bash
# Follows the log of what launch.sh started, on worker 0 or another one, until interrupted.
#
#   logs.sh [--worker=N] [--dry-run]
#
# Settings: TPU_NAME TPU_ZONE TPU_PROJECT [TPU_SSH_FLAGS]

source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
parse "--worker" "$@"
[[ $worker =~ ^[0-9]+$ ]] || die "--worker=$worker: the number of one host is wanted"

# With a terminal there, what is interrupted here ends there too.
TPU_SSH_FLAGS="${TPU_SSH_FLAGS:-} --ssh-flag=-t"
on_hosts "$worker" "tail -n 100 -F rdjax-run/log"
