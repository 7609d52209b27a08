#!/usr/bin/env bash
# Runs one command to its end: creates the slice, installs, launches and watches. If the slice is preempted, it is
# deleted and created again, and the command is launched again. It is also launched again after status 75, with which
# rdjax ends after it saved a checkpoint on SIGTERM. Any other status of the command ends this script with that status.
#
#   resume.sh [--spot] [--queued] [--dry-run] -- COMMAND [ARGUMENT...]
#
#   --spot, --queued  as in create.sh
#   --dry-run         prints the commands of one successful attempt, and runs none
#
# Ends with status 75 after TPU_ATTEMPTS attempts; running it again continues. A failed creation counts as an attempt.
# The workdir must be on storage that outlives the slice. A command that already runs is only watched.
# Settings: those of create.sh and install.sh, [TPU_ATTEMPTS] [TPU_PATIENCE]

source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
parse "--spot --queued --" "$@"
needs TPU_TYPE TPU_RUNTIME
((${#command[@]})) || die "a command is wanted behind --; see resume.sh --help"
# Nobody is there to answer a prompt, and a background job must not read from the terminal.
export CLOUDSDK_CORE_DISABLE_PROMPTS=1
exec </dev/null

common=() flags=()
if ((dry_run)); then common+=(--dry-run); fi
if ((spot)); then flags+=(--spot); fi
if ((queued)); then flags+=(--queued); fi

script() { "$here/$1.sh" ${common[@]+"${common[@]}"} "${@:2}"; }

# slice_state ASSUMED: prints the state of the slice, or of its queued request if there is no slice.
slice_state() {
  local state
  state=$(node_state "$1") || return
  if [[ $state == GONE ]]; then state=$(request_state "$1") || return; fi
  echo "$state"
}

# True for states that can only be deleted. ACTIVE is that of a request whose slice is gone.
is_lost() { [[ " PREEMPTED TERMINATED SUSPENDING SUSPENDED FAILED ACTIVE " == *" $1 "* ]]; }

# verdict STATE...: prints one word for all hosts: the status of a failure, running, again, 0 or unknown.
verdict() {
  local state
  case " $* " in *" 2 "*) echo 2 && return ;; esac
  # Where one host was reset, JAX aborts the others, with a status of their own: no failure of the command.
  case " $* " in
    *" lost "*) ;;
    *)
      for state; do
        case $state in 0 | 75 | running | none) ;; *) echo "$state" && return ;; esac
      done
      ;;
  esac
  case " $* " in
    *" running "*) echo running ;;
    *" 75 "* | *" lost "* | *" none "*) echo again ;;
    *" 0 "*) echo 0 ;;
    *) echo unknown ;;
  esac
}

# look ASSUMED: prints the verdict on the command, unknown if a host does not answer.
look() {
  local states
  # shellcheck disable=SC2086  # one word per host
  states=$(host_states "$1") && verdict $states || echo unknown
}

# Ends a command that runs on some of the hosts and was not started on others, because its launch broke off: those
# that run would wait for the others.
stop_half() {
  local states silent
  say "the command runs on some hosts of $TPU_NAME alone; it is stopped and launched again"
  script stop || return
  for ((silent = 0; silent < TPU_PATIENCE; silent++)); do
    states=$(host_states none) || return
    if ! grep -qx running <<<"$states"; then return; fi
    sleep "$TPU_POLL"
  done
  fail "the command still runs on $TPU_NAME"
}

# Creates, installs and launches, unless the command already runs.
start() {
  local state states
  state=$(slice_state GONE) || return
  if is_lost "$state"; then script delete || return; fi
  if [[ $state == READY ]]; then
    states=$(host_states none) || states=unknown
    if grep -qx running <<<"$states"; then
      if ! grep -qxE "none|lost|75" <<<"$states"; then
        say "a command runs already on $TPU_NAME and is watched"
        return
      fi
      stop_half || return
    fi
  fi
  script create ${flags[@]+"${flags[@]}"} && script install && script launch -- "${command[@]}"
}

# Watches the command until it ends. Sets `outcome` to its status, or to "again" if it must be launched again.
watch() {
  local state silent=0 failed=0
  while :; do
    state=$(slice_state READY) || state=unknown
    outcome=again
    if is_lost "$state" || [[ $state == GONE ]]; then say "$TPU_NAME is $state" && return; fi
    outcome=unknown
    if [[ $state == READY ]]; then outcome=$(look 0); fi
    case $outcome in
      0 | 2 | again) return ;;
      running) silent=0 ;;
      unknown)
        silent=$((silent + 1))
        ((silent < TPU_PATIENCE)) || fail "$TPU_NAME is $state and its hosts have not answered $silent times"
        ;;
      *)
        # Look once more: a failing host may be the first sign of a preemption.
        if ((failed)); then return; fi
        failed=1
        ;;
    esac
    sleep "$TPU_POLL"
  done
}

for ((attempt = 1; attempt <= TPU_ATTEMPTS; attempt++)); do
  say "attempt $attempt of $TPU_ATTEMPTS"
  outcome=again
  if start; then watch; fi
  if [[ $outcome == 0 ]]; then
    say "the command has finished; delete.sh ends the costs"
    exit 0
  elif [[ $outcome != again ]]; then
    echo "error: the command ended with status $outcome; see logs.sh; the slice still costs, delete.sh ends that" >&2
    exit "$outcome"
  fi
  sleep "$TPU_POLL"
done
echo "error: not finished after $TPU_ATTEMPTS attempts; see logs.sh; the slice may still cost, delete.sh ends that" >&2
exit 75
