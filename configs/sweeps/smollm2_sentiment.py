"""Compares the methods on the paper's sentiment rule, with its published files and SmolLM2-135M-Instruct.

    python -m rdjax.sweep --config=configs/sweeps/smollm2_sentiment.py --workdir=runs/smollm2/sentiment \\
        --config.model.path=<folder> --config.task.root=<data>/bob_sentiment_experiments

examples/smollm2 makes both folders, and runs this. The rates were chosen by configs/sweeps/smollm2_rates.py.
"""

from ml_collections import config_dict

from configs import paper
from configs.sweeps import arithmetic


def get_config() -> config_dict.ConfigDict:
    config = paper.get_config()
    config.model.path = "HuggingFaceTB/SmolLM2-135M-Instruct"
    config.task.name = "sentiment"
    config.task.root = "runs/smollm2/files/bob_sentiment_experiments"
    config.task.template = "chat"
    config.task.one_wording = True  # in the files the wording of the rule gives the class of the input away
    config.loss.hidden_weight = 10.0
    config.loss.hidden_positions = "shared"
    config.optimizer.learning_rate = 1e-3
    config.train.batch_size = 8
    config.train.valid_every = 0  # the last state is the result
    config.eval.systems = ("base", "base_with_rule", "student")
    config.eval.gap_rows = 0
    config.unlock()  # to add the section `sweep`
    config.sweep = config_dict.ConfigDict()
    config.sweep.methods = arithmetic.get_config().sweep.methods
    config.sweep.ks = (16, 64)
    config.sweep.seeds = (0, 1, 2)
    config.sweep.updates = 64
    config.sweep.settings = config_dict.ConfigDict()
    # Also evaluates the enhanced teacher, which every cell of this method trains.
    enhanced = (*config.eval.systems, "enhanced_with_rule")
    config.sweep.settings.rule_distill_enhanced = {"eval": {"systems": enhanced}}
    config.lock()
    config.sweep.settings.unlock()  # accepts any method or variant
    return config
