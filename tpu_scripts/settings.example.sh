# shellcheck shell=bash disable=SC2034
# Copy this file, edit the copy and name it: export TPU_SETTINGS=~/my-tpu.sh
# := keeps the value of a variable that the environment sets.

: "${TPU_NAME:=rdjax}"
: "${TPU_ZONE:=us-west4-a}"
: "${TPU_PROJECT:=my-project}"
: "${TPU_TYPE:=v5litepod-16}"
: "${TPU_RUNTIME:=v2-alpha-tpuv5-lite}"
: "${TPU_BUCKET:=gs://my-bucket/runs}"
