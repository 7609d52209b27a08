"""Makes LoRA adapters, merges them, and reads and writes them in the PEFT format.

An adapter is {projection: {"a": [L, in, R], "b": [L, R, out]}} in float32, e.g. {"self_attn.q_proj": ...};
the change of a kernel is scale * a @ b (Hu et al. 2021, arXiv 2106.09685).
"""

import dataclasses
import json
import math
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from rdjax.errors import UserError
from rdjax.models.config import DecoderConfig
from rdjax.models.decoder import projection_shapes
from rdjax.parallel.processes import is_first

Adapter = dict[str, dict[str, jax.Array]]

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"


@dataclasses.dataclass(frozen=True)
class LoraSpec:
    """Describes an adapter.

    Attributes:
      rank: R.
      alpha: the scale is alpha / R.
      dropout: the rate, on the adapter's inputs.
      targets: the adapted projections by PEFT's names ("q_proj").
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


def adapted_projections(config: DecoderConfig, spec: LoraSpec) -> dict[str, tuple[int, int]]:
    """Returns [in, out] of the adapted projections by their paths, in the decoder's order."""
    return {path: shape for path, shape in projection_shapes(config).items() if _target(path) in spec.targets}


def _target(path: str) -> str:
    """Returns PEFT's name of a projection."""
    return path.split(".")[-1]


def init_adapter(config: DecoderConfig, spec: LoraSpec, seed: int) -> Adapter:
    """Returns a fresh adapter: a uniform in +-1/sqrt(in) (PEFT's Kaiming with a = sqrt(5)), b zero."""
    adapter = {}
    for number, (projection, (rows, columns)) in enumerate(adapted_projections(config, spec).items()):
        key = jax.random.fold_in(jax.random.key(seed), number)
        bound = 1 / math.sqrt(rows)
        a = jax.random.uniform(key, (config.layers, rows, spec.rank), jnp.float32, -bound, bound)
        adapter[projection] = {"a": a, "b": jnp.zeros((config.layers, spec.rank, columns), jnp.float32)}
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


def _tensor_name(layer: int, projection: str, part: str) -> str:
    """Returns PEFT's name of one matrix."""
    return f"base_model.model.model.layers.{layer}.{projection}.lora_{part.upper()}.weight"


def save_adapter(folder: pathlib.Path, adapter: Adapter, spec: LoraSpec, base: str) -> None:
    """Writes `adapter_config.json` and `adapter_model.safetensors` as PEFT does: matrices [R, in] and [out, R]."""
    if not is_first():
        return
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for projection, ab in adapter.items():
        for part, stacked in ab.items():
            for layer, matrix in enumerate(np.asarray(stacked, np.float32)):
                tensors[_tensor_name(layer, projection, part)] = np.ascontiguousarray(matrix.T)
    fields = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": spec.rank,
        "lora_alpha": spec.alpha,
        "lora_dropout": spec.dropout,
        "target_modules": list(spec.targets),
        "use_rslora": spec.rank_stabilised,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    (folder / CONFIG_FILE).write_text(json.dumps(fields, indent=2) + "\n")


def load_adapter(folder: pathlib.Path, config: DecoderConfig) -> tuple[Adapter, LoraSpec]:
    """Reads a PEFT LoRA adapter.

    Raises:
      UserError: a file is missing or unreadable, it is no plain LoRA, or its tensors do not fit the decoder.
    """
    spec = _read_spec(folder, config)
    path = folder / WEIGHTS_FILE
    if not path.exists():
        raise UserError(f"{path}: not found; an adapter folder holds {CONFIG_FILE} and {WEIGHTS_FILE}")
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a readable safetensors file ({error})") from None
    _check_tensors(tensors, config, spec, path)
    adapter: Adapter = {}
    for projection in adapted_projections(config, spec):
        stacks = {
            part: [tensors[_tensor_name(layer, projection, part)].T for layer in range(config.layers)] for part in "ab"
        }
        adapter[projection] = {part: jnp.asarray(np.stack(matrices), jnp.float32) for part, matrices in stacks.items()}
    return adapter, spec


def _check_tensors(tensors: dict[str, np.ndarray], config: DecoderConfig, spec: LoraSpec, path: pathlib.Path) -> None:
    """Checks that an adapter has exactly the tensors that its config and the decoder call for.

    Raises:
      UserError: names the first faults.
    """
    expected = {}
    for projection, (rows, columns) in adapted_projections(config, spec).items():
        for layer in range(config.layers):
            expected[_tensor_name(layer, projection, "a")] = (spec.rank, rows)
            expected[_tensor_name(layer, projection, "b")] = (columns, spec.rank)
    faults = [f"{name} is missing" for name in expected if name not in tensors]
    faults += [f"{name} is not wanted" for name in tensors if name not in expected]
    for name, shape in expected.items():
        if name in tensors and tensors[name].shape != shape:
            faults.append(f"{name} has shape {list(tensors[name].shape)}, the model wants {list(shape)}")
    if faults:
        raise UserError(f"{path}: the adapter does not fit the model: " + "; ".join(faults[:8]))


def _read_spec(folder: pathlib.Path, config: DecoderConfig) -> LoraSpec:
    """Reads `adapter_config.json`.

    Raises:
      UserError: it is missing or invalid, or describes more than plain LoRA on the decoder's projections.
    """
    path = folder / CONFIG_FILE
    try:
        fields = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path}: not found; an adapter folder holds {CONFIG_FILE} and {WEIGHTS_FILE}") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: line {error.lineno}: invalid JSON ({error.msg})") from None
    plain = {"peft_type": "LORA", "bias": "none", "use_dora": False, "rank_pattern": {}, "alpha_pattern": {}}
    plain |= {"layers_to_transform": None, "modules_to_save": None}
    for name, accepted in plain.items():
        if fields.get(name, accepted) not in (accepted, None, [], {}):
            raise UserError(f"{path}: {name} = {fields[name]!r} is not supported; accepted: {accepted!r}")
    targets = fields.get("target_modules")
    known = [_target(projection) for projection in projection_shapes(config)]
    if not isinstance(targets, list) or not set(targets) <= set(known):
        raise UserError(f"{path}: target_modules = {targets!r}; accepted: a list of {', '.join(sorted(known))}")
    for name in ("r", "lora_alpha"):
        if not isinstance(fields.get(name), int | float):
            raise UserError(f"{path}: {name} is missing or no number")
    return LoraSpec(
        rank=fields["r"],
        alpha=fields["lora_alpha"],
        dropout=fields.get("lora_dropout", 0.0),
        targets=tuple(sorted(targets, key=known.index)),
        rank_stabilised=fields.get("use_rslora", False),
    )
