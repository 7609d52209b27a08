#!/usr/bin/env bash
# Installs rdjax on all hosts: the last commit of this checkout, or TPU_GIT_URL, into ~/rdjax, and a virtual environment
# into ~/rdjax-venv. Running it again updates both and keeps other files in ~/rdjax, such as runs.
#
#   install.sh [--dry-run]
#
# Settings: TPU_NAME TPU_ZONE TPU_PROJECT [TPU_PYTHON] [TPU_GIT_URL] [TPU_GIT_REF] [TPU_SSH_FLAGS]

source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
parse "" "$@"

if [[ -n ${TPU_GIT_URL:-} ]]; then
  # Not `pip install git+...`, because the configs are in the repository and not in the package.
  unpack="git init -q rdjax && git -C rdjax fetch -q --depth 1 $(quoted "$TPU_GIT_URL" "$TPU_GIT_REF")"
  unpack+=" && git -C rdjax checkout -q --force --detach FETCH_HEAD"
else
  checkout=$(git -C "$here" rev-parse --show-toplevel)
  # In the .git folder, where only this user writes and `git status` does not show it.
  archive=$(git -C "$here" rev-parse --absolute-git-dir)/rdjax.tar.gz
  if ! git -C "$checkout" diff --quiet HEAD; then echo "note: changes that are not committed are left out" >&2; fi
  read -r -a extra <<<"${TPU_SSH_FLAGS:-}"
  run git -C "$checkout" archive --format=tar.gz "--output=$archive" HEAD
  run gcloud compute tpus tpu-vm scp "$archive" "$TPU_NAME:rdjax.tar.gz" "${place[@]}" --worker=all ${extra[@]+"${extra[@]}"}
  unpack="mkdir -p rdjax && tar -xzf rdjax.tar.gz -C rdjax"
fi
on_hosts all "$unpack && bash rdjax/tpu_scripts/host/install.sh $(quoted "$TPU_PYTHON")"
say "installed on all hosts of $TPU_NAME"
