#!/usr/bin/env bash
# Sends SIGTERM to the command on all hosts: rdjax saves a checkpoint at the next step and ends with status 75.
#
#   stop.sh [--dry-run]
#
# End a running resume.sh first: it would launch the command again.
# Settings: TPU_NAME TPU_ZONE TPU_PROJECT [TPU_SSH_FLAGS]

source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
parse "" "$@"

on_hosts all "bash rdjax/tpu_scripts/host/stop.sh"
