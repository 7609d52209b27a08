#!/usr/bin/env bash
# Starts one command on all hosts, in ~/rdjax and the virtual environment of install.sh. The command keeps running when
# the connection ends. Fails if a command still runs.
#
#   launch.sh [--dry-run] -- COMMAND [ARGUMENT...]
#
# On every host ~/rdjax-run holds: log (of all commands so far), command, pid, and status after the command has ended.
# The environment of this machine is not passed on; `-- env NAME=value COMMAND` sets a variable.
# Settings: TPU_NAME TPU_ZONE TPU_PROJECT [TPU_SSH_FLAGS]

source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
parse "--" "$@"
((${#command[@]})) || die "a command is wanted behind --; see launch.sh --help"

# Before any host starts: processes on only some of the hosts would wait for the others forever.
states=$(host_states none) || fail "not all hosts of $TPU_NAME tell what runs; has install.sh been run?"
if grep -qx running <<<"$states"; then fail "a command still runs on $TPU_NAME; see logs.sh, stop.sh"; fi
on_hosts all "bash rdjax/tpu_scripts/host/launch.sh $(quoted "${command[@]}")"
say "launched on all hosts of $TPU_NAME; logs.sh follows it"
