"""Makes LoRA adapters and merges them.

An adapter is {projection: {"a": [L, in, R], "b": [L, R, out]}} in float32, e.g. {"self_attn.q_proj": ...}; L are the
layers that have the projection;
the change of a kernel is scale * a @ b (Hu et al. 2021, arXiv 2106.09685).
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import config_dict

from rdjax.errors import UserError
from rdjax.models.config import DecoderConfig
from rdjax.models.decoder import projection_shapes

Adapter = dict[str, dict[str, jax.Array]]


@dataclasses.dataclass(frozen=True)
class LoraSpec:
    """Describes an adapter.

    Attributes:
      rank: R.
      alpha: the scale is alpha / R.
      dropout: the rate, on the adapter's inputs.
      targets: the adapted projections by the last part of their paths ("q_proj").
      rank_stabilised: the scale is alpha / sqrt(R) (Kalajdzievski 2023, arXiv 2312.03732).
    """

    rank: int
    alpha: float
    dropout: float
    targets: tuple[str, ...]
    rank_stabilised: bool = False

    @property
    def scale(self) -> float:
        """Returns what multiplies a @ b."""
        return self.alpha / (math.sqrt(self.rank) if self.rank_stabilised else self.rank)

    def with_rank(self, rank: int) -> "LoraSpec":
        """Returns a spec of another rank and of the same scale."""
        ratio = rank / self.rank
        return dataclasses.replace(
            self, rank=rank, alpha=self.alpha * (math.sqrt(ratio) if self.rank_stabilised else ratio)
        )


def adapted_projections(config: DecoderConfig, spec: LoraSpec) -> dict[str, tuple[int, int]]:
    """Returns [in, out] of the adapted projections by their paths, in the decoder's order."""
    return {path: shape for path, shape in projection_shapes(config).items() if path.split(".")[-1] in spec.targets}


def lora_spec(section: config_dict.ConfigDict, config: DecoderConfig) -> LoraSpec:
    """Returns the adapter that a run's `lora` section describes.

    Raises:
      UserError: names the projections that the decoder does not have.
    """
    spec = LoraSpec(section.rank, section.alpha, section.dropout, tuple(section.targets))
    known = dict.fromkeys(path.split(".")[-1] for path in projection_shapes(config))
    unknown = [target for target in spec.targets if target not in known]
    if unknown:
        raise UserError(
            f"config.lora.targets: the model has no {', '.join(unknown)}; accepted: any of {', '.join(known)}"
        )
    return spec


def count_adapted_layers(config: DecoderConfig, spec: LoraSpec) -> int:
    """Counts the layers that have one of the adapter's projections or more."""
    return len({layer for path in adapted_projections(config, spec) for layer in config.layers_of(path)})


def init_adapter(config: DecoderConfig, spec: LoraSpec, seed: int) -> Adapter:
    """Returns a fresh adapter: a uniform in +-1/sqrt(in) (PEFT's Kaiming with a = sqrt(5)), b zero."""
    adapter = {}
    for number, (projection, (rows, columns)) in enumerate(adapted_projections(config, spec).items()):
        layers = len(config.layers_of(projection))
        key = jax.random.fold_in(jax.random.key(seed), number)
        bound = 1 / math.sqrt(rows)
        a = jax.random.uniform(key, (layers, rows, spec.rank), jnp.float32, -bound, bound)
        adapter[projection] = {"a": a, "b": jnp.zeros((layers, spec.rank, columns), jnp.float32)}
    return adapter


def scaled_adapter(adapter: Adapter | None, scale: float) -> Adapter | None:
    """Multiplies b by the scale; `Decoder` takes adapters in this form."""
    if adapter is None:
        return None
    return {name: {"a": ab["a"], "b": ab["b"] * scale} for name, ab in adapter.items()}


def merge_adapter(params: dict[str, Any], adapter: Adapter, scale: float) -> dict[str, Any]:
    """Returns the base with the adapter added to its kernels, in float32; layers must be stacked."""
    flat = flatten_dict(params, sep=".")
    for projection, ab in adapter.items():
        path = f"layers.{projection}.kernel"
        change = jnp.matmul(ab["a"], ab["b"], precision="highest") * scale
        flat[path] = flat[path].astype(jnp.float32) + change
    return unflatten_dict(flat, sep=".")
