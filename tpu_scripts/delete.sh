#!/usr/bin/env bash
# Deletes the slice and its queued request, if they exist.
#
#   delete.sh [--dry-run]
#
# The hosts' disks are deleted too: copy.sh saves a folder of theirs.
# Settings: TPU_NAME TPU_ZONE TPU_PROJECT

source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
parse "" "$@"

# The request first: --force deletes its slice with it, while deleting the slice would keep the request.
state=$(request_state ACTIVE)
if [[ $state != GONE ]]; then
  run gcloud compute tpus queued-resources delete "$TPU_NAME" "${place[@]}" --force --quiet
fi
state=$(node_state READY)
if [[ $state != GONE ]]; then
  run gcloud compute tpus tpu-vm delete "$TPU_NAME" "${place[@]}" --quiet
fi
say "$TPU_NAME is gone"
