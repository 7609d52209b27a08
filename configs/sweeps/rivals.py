"""Compares ways to distil a rule on equal terms: ours, its parts, what others propose, and practice.

    python -m rdjax.sweep --config=configs/sweeps/rivals.py --workdir=runs/rivals

On the other embedded tasks: --config.model.path=rulebook-language --config.task.name=sentiment (or safety)
--config.eval.max_new_tokens=40. All have the same rows and 16 samples. `ours` is the defaults for a rule of your own;
the others are these without consistency, with one weight on all hidden states, and with what their settings name. All
that have a teacher hold what the rule is not about, unless they say otherwise. Each has the learning rate that was best
for it on arithmetic, on another seed (configs/sweeps/rivals_rates.py).
"""

from typing import Any

from ml_collections import config_dict

from rdjax.defaults import rule_config

# Eight rounds of 25 updates on the student's own answers, from the base on, without hidden states.
ON_POLICY = {"train": {"updates": 0}, "loss": {"hidden_weight": 0.0}}
ROUNDS = {"rounds": 8, "updates": 25}

VARIANTS: dict[str, dict[str, Any]] = {
    "ours": {"loss": {field: rule_config().loss[field] for field in ("consistency_weight", "retain_hidden_weight")}},
    "without_consistency": {},
    "logits_alone": {"loss": {"hidden_weight": 0.0}},
    "hidden_alone": {"loss": {"logit": "none"}},
    "upper_hidden_alone": {"loss": {"logit": "none", "hidden_layers": (3, 4, 5)}},  # of six layers
    # The authors' code: their positions, weight and reduction, and nothing is retained.
    "published": {
        "loss": {"variant": "published", "hidden_weight": 2.44, "hidden_positions": "response", "retain_weight": 0.0}
    },
    # Deep Context Distillation (arXiv 2503.08727): the sum of relative L1 distances over six layers, teacher's texts.
    "deep_context": {
        "task": {"responses": "teacher"},
        "loss": {"hidden_weight": 0.0, "terms": ("hidden_l1=6",), "hidden_positions": "response"},
    },
    "prompt_distillation": {"method": "inst_tune_without_rule", "task": {"responses": "teacher"}},
    "tuning": {"method": "inst_tune_without_rule"},
    "on_policy_forward": {**ON_POLICY, "practice": {**ROUNDS, "logit": "kl"}},  # as SDFT, arXiv 2601.19897
    "on_policy_reverse": {**ON_POLICY, "practice": {**ROUNDS, "logit": "reverse_kl"}},  # as OPCD, arXiv 2602.12275
    "on_policy_reverse_top_16": {
        "train": {"updates": 0},
        "loss": {"hidden_weight": 0.0, "top_k": 16},
        "practice": {**ROUNDS, "logit": "reverse_kl"},
    },
    # Hidden states on the student's own answers (as OPRD, arXiv 2606.06021).
    "on_policy_hidden": {"train": {"updates": 0}, "loss": {"logit": "none"}, "practice": ROUNDS},
    # Without consistency, then half as many updates of practice; and the same with the training pairs mixed in.
    "practice": {"practice": {"rounds": 4, "updates": 25}},
    "practice_mixed": {"practice": {"rounds": 4, "updates": 25, "replay": True}},
    "without_retention": {"loss": {"retain_weight": 0.0}},
}
RATE = 3.6e-3  # what `auto` takes for the model's width
# Where another was better, by the mean of both tests and retain.
RATES = dict.fromkeys(
    ("hidden_alone", "upper_hidden_alone", "prompt_distillation", "tuning", "on_policy_hidden", "practice"), 1e-2
)


def get_config() -> config_dict.ConfigDict:
    config = rule_config()
    config.task.name, config.task.root, config.task.inputs = "arithmetic", "", "file"
    config.task.template, config.task.responses, config.task.demos = "alpaca", "gold", False
    config.loss.consistency_weight, config.loss.retain_hidden_weight = 0.0, None
    config.optimizer.learning_rate = RATE
    config.eval.max_new_tokens = 8
    config.eval.batch_size = 100
    config.eval.gap_rows = 0
    config.unlock()  # to add the section `sweep`
    config.sweep = config_dict.ConfigDict()
    config.sweep.methods = tuple(VARIANTS)
    config.sweep.ks = (16,)
    config.sweep.seeds = (0, 1, 2)
    config.sweep.updates = 0  # as train.updates says
    config.sweep.settings = config_dict.ConfigDict(VARIANTS)
    for name, rate in RATES.items():
        config.sweep.settings[name].optimizer = config_dict.ConfigDict({"learning_rate": rate})
    config.lock()
    config.sweep.settings.unlock()  # accepts any method or variant
    return config
