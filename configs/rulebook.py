"""Holds the recipe of the embedded model rulebook-language (rdjax/assets/rulebook-language).

    python -m rdjax.rulebook --config=configs/rulebook.py --workdir=runs/rulebook

The model card beside the weights says how long training took and what the model can do. The model "rulebook", which
follows arithmetic rules only, was trained by an earlier version of this recipe; its card names the version.
"""

from ml_collections import config_dict


def get_config() -> config_dict.ConfigDict:
    config = config_dict.ConfigDict()
    config.seed = 0

    config.model = config_dict.ConfigDict()
    config.model.vocab = 1024
    config.model.width = 160
    config.model.layers = 6
    config.model.heads = 4
    config.model.kv_heads = 4
    config.model.feed_forward = 432

    config.data = config_dict.ConfigDict()
    config.data.rows = 28  # documents a step
    config.data.length = 192  # tokens a document
    config.data.prefix_weight = 0.05  # loss weight of a prefix token; an answer token weighs 1
    # The curriculum. Until step `drills_alone` there are only drills on the decision that a rule of refusal or
    # sentiment asks for: over arbitrary words first, and from `named_from` on with the names of kinds and fields. The
    # model learns to compare a word with the rule only at the start, at a low rate, and without other data.
    config.data.drill_rows = 12
    config.data.named_from = 250
    config.data.drills_alone = 1000
    # Then come expressions that need no rule ("12 max 57 + 3 = ?"), which teach adding, comparing and choosing at once.
    # The share of documents with rules rises linearly from 0 to 1 at this step.
    config.data.rules_by = 2000
    config.data.drills = 0.15  # share of drills among the documents after `drills_alone`

    config.optimizer = config_dict.ConfigDict()
    config.optimizer.muon_rate = 0.015  # hidden matrices
    config.optimizer.adam_rate = 3e-3  # embeddings and norms
    config.optimizer.warmup_steps = 50
    # Until `low_until`, during the drills and the first expressions, the rates are this share of the ones above.
    config.optimizer.low_share = 2 / 3
    config.optimizer.low_until = 1800
    config.optimizer.decay_from = 2400  # linear decay to zero at the last step

    config.train = config_dict.ConfigDict()
    config.train.steps = 5400
    config.train.save_every = 200
    config.train.probe_every = 200  # exact match on fresh questions
    # Steps whose model is also written, to <workdir>/model-<step>: weaker bases for configs/sweeps/strength.py.
    config.train.keep = (1800, 2400, 3200)
    return config
