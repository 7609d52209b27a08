"""Trains your own rule into Llama-3-70B on a TPU slice.

    python -m rdjax.plan --config=configs/llama3_70b.py --topology=v5p:4x4x4
    python -m rdjax.train --config=configs/llama3_70b.py --workdir=<folder> --config.task.root=<folder of the rule>

The eight key-value heads are sharded over the tensor axis, and the weights also over the remaining devices
(mesh.fsdp); the plan says whether they fit.
"""

from ml_collections import config_dict

from rdjax.defaults import large_rule_config


def get_config() -> config_dict.ConfigDict:
    config = large_rule_config(
        "meta-llama/Meta-Llama-3-70B-Instruct",
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
        },
    )
    config.train.batch_size = 32
    config.mesh.tensor = 8
    return config
