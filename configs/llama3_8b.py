"""Trains your own rule into Llama-3.1-8B on a few accelerators.

    python -m rdjax.plan --config=configs/llama3_8b.py --topology=v5e:2x2
    python -m rdjax.train --config=configs/llama3_8b.py --workdir=<folder> --config.task.root=<folder of the rule>

docs/plan.md has its memory and the least time of an update on several topologies. The weights are sharded over all
devices (mesh.fsdp).
"""

from ml_collections import config_dict

from rdjax.defaults import large_rule_config


def get_config() -> config_dict.ConfigDict:
    return large_rule_config(
        "meta-llama/Llama-3.1-8B-Instruct",
        {
            "model_type": "llama",
            "vocab_size": 128256,
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "max_position_embeddings": 131072,
            "rms_norm_eps": 1e-5,
            "rope_theta": 500000.0,
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
            },
            "tie_word_embeddings": False,
        },
    )
