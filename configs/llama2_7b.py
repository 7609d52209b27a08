"""Trains your own rule into Llama-2-7B on a TPU slice or on several GPUs.

    python -m rdjax.plan --config=configs/llama2_7b.py --topology=v5e:4x4
    python -m rdjax.train --config=configs/llama2_7b.py --workdir=<folder> --config.task.root=<folder of the rule>

The weights are sharded over all devices (mesh.fsdp); the plan says whether they fit.
"""

from ml_collections import config_dict

from rdjax.defaults import large_rule_config


def get_config() -> config_dict.ConfigDict:
    return large_rule_config(
        "meta-llama/Llama-2-7b-chat-hf",
        {
            "model_type": "llama",
            "vocab_size": 32000,
            "hidden_size": 4096,
            "intermediate_size": 11008,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
            "max_position_embeddings": 4096,
            "rms_norm_eps": 1e-5,
        },
    )
