"""Trains your own rule into Llama-3.2-1B on one accelerator.

    python -m rdjax.plan --config=configs/llama3_1b.py --topology=v5e:1x1
    python -m rdjax.train --config=configs/llama3_1b.py --workdir=<folder> --config.task.root=<folder of the rule>

docs/plan.md has its memory and the least time of an update on several topologies. On several devices the weights are
sharded over all of them (mesh.fsdp).
"""

from ml_collections import config_dict

from rdjax.defaults import large_rule_config


def get_config() -> config_dict.ConfigDict:
    return large_rule_config(
        "meta-llama/Llama-3.2-1B-Instruct",
        {
            "model_type": "llama",
            "vocab_size": 128256,
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "num_hidden_layers": 16,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 64,
            "max_position_embeddings": 131072,
            "rms_norm_eps": 1e-5,
            "rope_theta": 500000.0,
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": 32.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
            },
            "tie_word_embeddings": True,
        },
    )
