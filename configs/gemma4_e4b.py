"""Trains your own rule into Gemma 4 E4B on a few accelerators.

    python -m rdjax.plan --config=configs/gemma4_e4b.py --topology=v5e:2x2
    python -m rdjax.train --config=configs/gemma4_e4b.py --workdir=<folder> --config.task.root=<folder of the rule>

docs/plan.md has its memory and the least time of an update on several topologies. The weights are sharded over all
devices (mesh.fsdp).
"""

from ml_collections import config_dict

from rdjax.defaults import large_rule_config


def get_config() -> config_dict.ConfigDict:
    return large_rule_config(
        "google/gemma-4-E4B-it",
        {
            "model_type": "gemma4_text",
            "vocab_size": 262144,
            "hidden_size": 2560,
            "intermediate_size": 10240,
            "num_hidden_layers": 42,
            "num_attention_heads": 8,
            "num_key_value_heads": 2,
            "num_kv_shared_layers": 18,
            "head_dim": 256,
            "global_head_dim": 512,
            "vocab_size_per_layer_input": 262144,
            "hidden_size_per_layer_input": 256,
            "sliding_window": 512,
            "max_position_embeddings": 131072,
            "rms_norm_eps": 1e-6,
            "final_logit_softcapping": 30.0,
            "tie_word_embeddings": True,
        },
    )
