# shellcheck shell=bash
# shellcheck disable=SC2034  # the scripts that source this file use several of its variables
# Functions of all scripts: they read settings and arguments, report errors, and run or print every command.

set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
exec 3>&1 # a dry run prints its commands here, because inside $(...) standard output is captured

usage() { sed -n '2,/^$/s/^# \{0,1\}//p' "$0"; }

# Ends with 2: a user's mistake.
die() {
  echo "error: $*" >&2
  exit 2
}

# Ends with 1: a command failed.
fail() {
  echo "error: $*" >&2
  exit 1
}

# parse "ACCEPTED" "$@": reads the arguments and the settings. ACCEPTED lists flags, "words" if plain arguments are
# accepted, and "--" if a command may follow it. Results: a variable for each flag, and the arrays `words` and `command`.
parse() {
  local kind accepted=" --help --dry-run $1 "
  dry_run=0 spot=0 queued=0 worker=0 words=() command=()
  shift
  while (($#)); do
    kind=${1%%=*}
    [[ $kind == -* ]] || kind=words
    [[ $accepted == *" $kind "* ]] || die "the argument '$1' is not understood; see ${0##*/} --help"
    case $1 in
      --help) usage && exit 0 ;;
      --) shift && command=("$@") && break ;;
      --dry-run) dry_run=1 ;;
      --spot) spot=1 ;;
      --queued) queued=1 ;;
      --worker=*) worker=${1#*=} ;;
      -*) die "the argument '$1' is not understood; see ${0##*/} --help" ;;
      *) words+=("$1") ;;
    esac
    shift
  done
  read_settings
}

read_settings() {
  local name
  if [[ -n ${TPU_SETTINGS:-} ]]; then
    [[ -r $TPU_SETTINGS ]] || die "TPU_SETTINGS: $TPU_SETTINGS cannot be read"
    # shellcheck source=/dev/null
    source "$TPU_SETTINGS"
  fi
  : "${TPU_PYTHON:=3.12}" "${TPU_GIT_REF:=HEAD}"
  : "${TPU_WAIT:=21600}" "${TPU_POLL:=30}" "${TPU_ATTEMPTS:=20}" "${TPU_PATIENCE:=60}"
  for name in TPU_WAIT TPU_POLL TPU_ATTEMPTS TPU_PATIENCE; do
    [[ ${!name} =~ ^[0-9]+$ ]] || die "$name: '${!name}' is not a whole number"
  done
  needs TPU_NAME TPU_ZONE TPU_PROJECT
  place=("--zone=$TPU_ZONE" "--project=$TPU_PROJECT")
}

needs() {
  local name missing=""
  for name; do [[ -n ${!name:-} ]] || missing+=" $name"; done
  [[ -z $missing ]] || die "not set:$missing; set it in the environment or in the file that TPU_SETTINGS names"
}

# Quotes words so that a shell reads the line back as the same words.
quoted() {
  local word line="" tick="'" escaped="'\\''"
  for word; do
    if [[ -z $word || $word == *[!A-Za-z0-9_./:=@%+,-]* ]]; then word=$tick${word//$tick/$escaped}$tick; fi
    line+=" $word"
  done
  echo "${line# }"
}

say() { if ((!dry_run)); then echo "$*"; fi; }

run() { if ((dry_run)); then quoted "$@" >&3; else "$@" 3>&-; fi; }

# ask ASSUMED COMMAND...: runs the command and prints its output; a dry run prints the assumed answer instead.
ask() {
  local assumed=$1
  shift
  run "$@" || return
  if ((dry_run)); then echo "$assumed"; fi
}

# state_of KIND FIELD ASSUMED: prints the state of a resource as the cloud names it, or GONE; a dry run the assumed one.
state_of() {
  local errors answer status=0
  errors=$(mktemp)
  answer=$(ask "$3" gcloud compute tpus "$1" describe "$TPU_NAME" "${place[@]}" "--format=value($2)" 2>"$errors") || status=$?
  if ((status)) && grep -q NOT_FOUND "$errors"; then answer=GONE status=0; fi
  if ((status)); then cat "$errors" >&2; fi
  rm -f "$errors"
  echo "$answer"
  return "$status"
}

node_state() { state_of tpu-vm state "$1"; }

request_state() { state_of queued-resources state.state "$1"; }

# on_hosts WORKER COMMAND: runs a line of shell on the host with this number, or on "all".
on_hosts() {
  local extra
  read -r -a extra <<<"${TPU_SSH_FLAGS:-}"
  run gcloud compute tpus tpu-vm ssh "$TPU_NAME" "${place[@]}" "--worker=$1" ${extra[@]+"${extra[@]}"} "--command=$2"
}

# host_states ASSUMED: prints the state of the command on each host, one word a host: running, its exit status, lost
# (it was killed) or none.
host_states() {
  local answers
  answers=$(on_hosts all "bash rdjax/tpu_scripts/host/status.sh") || return
  if ((dry_run)); then answers="rdjax-status host $1"; fi
  sed -n 's/^rdjax-status [^ ]* //p' <<<"$answers"
}
