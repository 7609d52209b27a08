#!/usr/bin/env bash
# Creates the TPU slice and waits until it is ready. Does nothing if it is READY.
#
#   create.sh [--spot] [--queued] [--dry-run]
#
#   --spot     a cheaper slice, which may be preempted at any time
#   --queued   waits in the queue for capacity, at most TPU_WAIT seconds; without it a lack of capacity is an error
#   --dry-run  prints the commands that create a slice, and runs none
#
# Settings: TPU_NAME TPU_ZONE TPU_PROJECT TPU_TYPE TPU_RUNTIME [TPU_CREATE_FLAGS] [TPU_WAIT] [TPU_POLL]

source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
parse "--spot --queued" "$@"
needs TPU_TYPE TPU_RUNTIME

state=$(node_state GONE)
if [[ $state == READY ]]; then
  say "$TPU_NAME is READY"
  exit 0
fi

if ((queued)); then
  look=request_state wanted=ACTIVE
  state=$(request_state GONE)
  # The request expires when the wait ends, so that no slice is created that nobody waits for.
  create=(queued-resources create "$TPU_NAME" "--node-id=$TPU_NAME" "${place[@]}" "--accelerator-type=$TPU_TYPE"
    "--runtime-version=$TPU_RUNTIME" "--valid-until-duration=${TPU_WAIT}s")
else
  look=node_state wanted=READY
  create=(tpu-vm create "$TPU_NAME" "${place[@]}" "--accelerator-type=$TPU_TYPE" "--version=$TPU_RUNTIME")
fi
if ((spot)); then create+=(--spot); fi
read -r -a extra <<<"${TPU_CREATE_FLAGS:-}"
create+=(${extra[@]+"${extra[@]}"})

if [[ $state == GONE ]]; then
  run gcloud compute tpus "${create[@]}"
  state=$($look "$wanted")
fi
until [[ $state == "$wanted" ]]; do
  case $state in
    CREATING | STARTING | RESTARTING | REIMAGING | REPAIRING | ACCEPTED | PROVISIONING | WAITING_FOR_RESOURCES) ;;
    *) fail "$TPU_NAME is $state; delete.sh removes it" ;;
  esac
  ((SECONDS < TPU_WAIT)) || fail "$TPU_NAME is still $state after $TPU_WAIT seconds; delete.sh gives it up"
  sleep "$TPU_POLL"
  state=$($look "$wanted")
done
say "$TPU_NAME is $state"
