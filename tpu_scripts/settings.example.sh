# shellcheck shell=bash disable=SC2034
# Copy, change, and name the copy: export TPU_SETTINGS=~/my-tpu.sh
# := leaves a variable that the environment has set.

: "${TPU_NAME:=rdjax}"
: "${TPU_ZONE:=us-west4-a}"
: "${TPU_PROJECT:=my-project}"
: "${TPU_TYPE:=v5litepod-16}"
: "${TPU_RUNTIME:=v2-alpha-tpuv5-lite}"
: "${TPU_BUCKET:=gs://my-bucket/runs}"
