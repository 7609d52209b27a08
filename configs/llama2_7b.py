"""Trains your own rule into Llama-2-7B on a TPU slice or on several GPUs, with the authors' settings.

    python -m rdjax.plan --config=configs/llama2_7b.py --topology=v5e:4x4
    python -m rdjax.train --config=configs/llama2_7b.py --workdir=<folder> --config.task.root=<folder of the rule>

The weights are sharded over all devices (mesh.fsdp); the plan says whether they fit.
"""

from ml_collections import config_dict

from configs import rule


def get_config() -> config_dict.ConfigDict:
    config = rule.get_config()
    config.model.path = "meta-llama/Llama-2-7b-hf"
    config.model.remat = "full"
    # rdjax.plan reads these fields of the checkpoint's config.json; a run reads the file.
    with config.unlocked():
        config.model.architecture = config_dict.ConfigDict(
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
            }
        )
    config.task.k = 64
    config.train.batch_size = 16
    config.mesh.fsdp = -1
    return config
