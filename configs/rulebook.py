"""The recipe of the embedded rulebook model (rdjax/assets/rulebook).

    python -m rdjax.rulebook --config=configs/rulebook.py --workdir=runs/rulebook

The model card beside the weights says what it took and what the model can do.
"""

from ml_collections import config_dict


def get_config() -> config_dict.ConfigDict:
    config = config_dict.ConfigDict()
    config.seed = 0

    config.model = config_dict.ConfigDict()
    config.model.vocab = 640
    config.model.width = 192
    config.model.layers = 4
    config.model.heads = 6
    config.model.kv_heads = 6
    config.model.feed_forward = 512

    config.data = config_dict.ConfigDict()
    config.data.rows = 24  # documents a step
    config.data.length = 192  # tokens a document
    config.data.prefix_weight = 0.05  # loss weight of a prefix token; an answer token weighs 1
    # The curriculum: plain sums alone until the model can add, then mostly rules about sums, then all kinds,
    # then more operands of one and two digits.
    config.data.rules_from = 300
    config.data.all_kinds_from = 1500
    config.data.short_from = 3300

    config.optimizer = config_dict.ConfigDict()
    config.optimizer.muon_rate = 0.02  # hidden matrices
    config.optimizer.adam_rate = 3e-3  # embeddings and norms
    config.optimizer.warmup_steps = 100
    config.optimizer.decay_from = 1980  # linear decay to zero at restart_at, then again from a share of the peak
    config.optimizer.restart_at = 3300
    config.optimizer.restart_share = 0.6

    config.train = config_dict.ConfigDict()
    config.train.steps = 4500
    config.train.save_every = 250
    config.train.probe_every = 250  # exact match on fresh questions
    return config
