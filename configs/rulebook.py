"""The recipe of the embedded model rulebook-language (rdjax/assets/rulebook-language).

    python -m rdjax.rulebook --config=configs/rulebook.py --workdir=runs/rulebook

The model card beside the weights says what it took and what the model can do. The model "rulebook", which knows
arithmetic alone, was made by an earlier form of this recipe; its card says which.
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
    # The curriculum. Drills on what a rule of refusal or sentiment decides stand alone before `drills_alone`, at first
    # over arbitrary words and then on the names of kinds and fields: comparing a word with the rule is learnt from
    # nothing and at a low rate or, among other things or later, not at all.
    config.data.drill_rows = 12
    config.data.named_from = 250
    config.data.drills_alone = 1000
    # Then expressions that need no rule ("12 max 57 + 3 = ?"), for they teach adding, comparing and choosing at once;
    # the share of documents with rules rises in a straight line from 0 to 1 at this step.
    config.data.rules_by = 2000
    config.data.drills = 0.15  # share of the documents that go on being drills

    config.optimizer = config_dict.ConfigDict()
    config.optimizer.muon_rate = 0.015  # hidden matrices
    config.optimizer.adam_rate = 3e-3  # embeddings and norms
    config.optimizer.warmup_steps = 50
    # The drills, and the first expressions, are learnt at two thirds of these rates.
    config.optimizer.low_share = 2 / 3
    config.optimizer.low_until = 1800
    config.optimizer.decay_from = 2400  # linear decay to zero at the last step

    config.train = config_dict.ConfigDict()
    config.train.steps = 5400
    config.train.save_every = 200
    config.train.probe_every = 200  # exact match on fresh questions
    # Steps whose model is kept too, as <workdir>/model-<step>: weaker bases, to set a student against its ceiling.
    config.train.keep = (1800, 2400, 3200)
    return config
