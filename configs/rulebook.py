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
    config.model.width = 160
    config.model.layers = 6
    config.model.heads = 4
    config.model.kv_heads = 4
    config.model.feed_forward = 432

    config.data = config_dict.ConfigDict()
    config.data.rows = 24  # documents a step
    config.data.length = 192  # tokens a document
    config.data.prefix_weight = 0.05  # loss weight of a prefix token; an answer token weighs 1
    # The curriculum: expressions that need no rule ("12 max 57 + 3 = ?") first, for they teach adding, comparing and
    # choosing at once; the share of documents with rules then rises in a straight line from 0 to 1 at this step.
    config.data.rules_by = 1000

    config.optimizer = config_dict.ConfigDict()
    config.optimizer.muon_rate = 0.02  # hidden matrices
    config.optimizer.adam_rate = 3e-3  # embeddings and norms
    config.optimizer.warmup_steps = 100
    config.optimizer.decay_from = 1600  # linear decay to zero at the last step

    config.train = config_dict.ConfigDict()
    config.train.steps = 6000
    config.train.save_every = 200
    config.train.probe_every = 200  # exact match on fresh questions
    # Steps whose model is kept too, as <workdir>/model-<step>: weaker bases, to set a student against its ceiling.
    config.train.keep = (1200, 2000, 3200)
    return config
