#!/usr/bin/env bash
# Copies a folder of worker 0 to a bucket. Files that the bucket has already are not copied again.
#
#   copy.sh [--dry-run] FOLDER [gs://BUCKET/PATH]
#
# FOLDER is absolute, or relative to ~/rdjax as a workdir is. The default target is TPU_BUCKET/<name of FOLDER>.
# Settings: TPU_NAME TPU_ZONE TPU_PROJECT [TPU_BUCKET, such as gs://mine/runs] [TPU_SSH_FLAGS]

source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
parse "words" "$@"
((${#words[@]} == 1 || ${#words[@]} == 2)) || die "a folder is wanted, and perhaps where it goes; see copy.sh --help"
folder=${words[0]%/}
if ((${#words[@]} == 2)); then
  target=${words[1]}
else
  needs TPU_BUCKET
  target=${TPU_BUCKET%/}/${folder##*/}
fi
[[ $target == gs://* ]] || die "$target is not in a bucket; gs://... is wanted"

on_hosts 0 "cd rdjax && gcloud storage rsync --recursive $(quoted "$folder" "$target")"
say "copied to $target"
