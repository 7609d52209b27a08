#!/usr/bin/env bash
# Deletes the slice, and the queued request if there is one. What is gone already is fine.
#
#   delete.sh [--dry-run]
#
# The hosts' disks go with it: see copy.sh.
# Settings: TPU_NAME TPU_ZONE TPU_PROJECT

source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
parse "" "$@"

# The request first: --force deletes its slice too, and a slice alone would leave a request behind.
state=$(request_state ACTIVE)
if [[ $state != GONE ]]; then
  run gcloud compute tpus queued-resources delete "$TPU_NAME" "${place[@]}" --force --quiet
fi
state=$(node_state READY)
if [[ $state != GONE ]]; then
  run gcloud compute tpus tpu-vm delete "$TPU_NAME" "${place[@]}" --quiet
fi
say "$TPU_NAME is gone"
