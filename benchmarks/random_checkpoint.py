"""Writes a checkpoint of random weights, for timings at the shapes of a model whose weights are not needed.

    python -m benchmarks.random_checkpoint --out=<folder> --fields='{"model_type": "qwen3_5_text", ...}'

The fields are those of config.json; what the family's published files may leave out can be left out here.
"""

import json
import pathlib

import jax.numpy as jnp
import numpy as np
from absl import app, flags
from flax.traverse_util import flatten_dict, unflatten_dict

from rdjax.models.families.registry import decoder_config_from_hf
from rdjax.models.weights import abstract_params, save_params

_OUT = flags.DEFINE_string("out", None, "The folder to write.", required=True)
_FIELDS = flags.DEFINE_string("fields", None, "Fields of config.json.", required=True)


def main(argv: list[str]) -> None:
    """Writes config.json and model.safetensors, in bfloat16."""
    del argv
    folder, fields = pathlib.Path(_OUT.value), json.loads(_FIELDS.value)
    config = decoder_config_from_hf(fields, "--fields")
    random = np.random.default_rng(0)

    def draw(path: str, shape: tuple[int, ...]) -> np.ndarray:
        """Returns weights that keep activations near 1; norms and rates of decay stay as they begin."""
        if not path.endswith(("kernel", "embed_tokens", "table", "conv_taps")):
            return np.ones(shape, jnp.bfloat16)
        return (0.02 * random.standard_normal(shape, np.float32)).astype(jnp.bfloat16)

    shapes = flatten_dict(abstract_params(config, jnp.bfloat16)[1], sep=".")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(fields, indent=2) + "\n")
    params = unflatten_dict({path: draw(path, leaf.shape) for path, leaf in shapes.items()}, sep=".")
    save_params(folder, config, params, jnp.bfloat16)


if __name__ == "__main__":
    app.run(main)
