"""Trains your own rule into Llama-3-70B on a TPU slice, with the authors' settings.

    python -m rdjax.plan --config=configs/llama3_70b.py --topology=v5p:4x4x4
    python -m rdjax.train --config=configs/llama3_70b.py --workdir=<folder> --config.task.root=<folder of the rule>

The eight key-value heads are sharded over the tensor axis, and the weights also over the remaining devices
(mesh.fsdp); the plan says whether they fit.
"""

from ml_collections import config_dict

from configs import rule


def get_config() -> config_dict.ConfigDict:
    config = rule.get_config()
    config.model.path = "meta-llama/Meta-Llama-3-70B"
    config.model.remat = "full"
    # rdjax.plan reads these fields of the checkpoint's config.json; a run reads the file.
    with config.unlocked():
        config.model.architecture = config_dict.ConfigDict(
            {
                "model_type": "llama",
                "vocab_size": 128256,
                "hidden_size": 8192,
                "intermediate_size": 28672,
                "num_hidden_layers": 80,
                "num_attention_heads": 64,
                "num_key_value_heads": 8,
                "max_position_embeddings": 8192,
                "rms_norm_eps": 1e-5,
                "rope_theta": 500000.0,
            }
        )
    config.task.k = 64
    config.train.batch_size = 32
    config.mesh.fsdp = -1
    config.mesh.tensor = 8
    return config
