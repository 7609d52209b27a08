#!/usr/bin/env bash
# Prints the state of the slice and, if it is READY, the state of the command on every host.
#
#   status.sh [--dry-run]
#
# Settings: TPU_NAME TPU_ZONE TPU_PROJECT [TPU_SSH_FLAGS]

source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
parse "" "$@"

state=$(node_state READY)
say "$TPU_NAME is $state"
if [[ $state == READY ]]; then on_hosts all "bash rdjax/tpu_scripts/host/status.sh"; fi
