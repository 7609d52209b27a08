"""Trains your own rule into Qwen3.5-4B on a few accelerators.

    python -m rdjax.plan --config=configs/qwen3_5_4b.py --topology=v5e:2x2
    python -m rdjax.train --config=configs/qwen3_5_4b.py --workdir=<folder> --config.task.root=<folder of the rule>

docs/plan.md has its memory and the least time of an update on several topologies. The weights are sharded over all
devices (mesh.fsdp). The adapter is on the mixers of all layers: attention, and gated delta nets.
"""

from ml_collections import config_dict

from rdjax.defaults import large_rule_config


def get_config() -> config_dict.ConfigDict:
    config = large_rule_config(
        "Qwen/Qwen3.5-4B",
        {
            "model_type": "qwen3_5_text",
            "vocab_size": 248320,
            "hidden_size": 2560,
            "intermediate_size": 9216,
            "num_hidden_layers": 32,
            "full_attention_interval": 4,
            "num_attention_heads": 16,
            "num_key_value_heads": 4,
            "head_dim": 256,
            "linear_num_key_heads": 16,
            "linear_num_value_heads": 32,
            "linear_key_head_dim": 128,
            "linear_value_head_dim": 128,
            "linear_conv_kernel_dim": 4,
            "max_position_embeddings": 262144,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {"rope_theta": 1e7, "partial_rotary_factor": 0.25},
            "tie_word_embeddings": True,
        },
    )
    config.lora.targets = ("q_proj", "k_proj", "v_proj", "o_proj", "in_proj_qkv", "in_proj_z", "out_proj")
    return config
