"""LoRA adapters as a tree of their own, in and out of the PEFT format.

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
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from rdjax.errors import UserError
from rdjax.models.config import DecoderConfig
from rdjax.models.decoder import PROJECTIONS
from rdjax.parallel.processes import is_first

Adapter = dict[str, dict[str, jax.Array]]

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"


@dataclasses.dataclass(frozen=True)
class LoraSpec:
    """What an adapter's numbers mean: its rank, its scale alpha / rank, dropout on its input, its projections."""

    rank: int
    alpha: float
    dropout: float
    targets: tuple[str, ...]  # PEFT's names: "q_proj"
    rank_stabilised: bool = False  # scale by alpha / sqrt(rank)

    @property
    def scale(self) -> float:
        return self.alpha / (math.sqrt(self.rank) if self.rank_stabilised else self.rank)

    @property
    def projections(self) -> tuple[str, ...]:
        """The adapted projections by module path, in the decoder's order."""
        return tuple(path for path in PROJECTIONS if path.split(".")[1] in self.targets)


def projection_shape(config: DecoderConfig, projection: str) -> tuple[int, int]:
    """[in, out] of a projection's kernel."""
    queries, keys = config.heads * config.head_width, config.kv_heads * config.head_width
    return {
        "self_attn.q_proj": (config.width, queries),
        "self_attn.k_proj": (config.width, keys),
        "self_attn.v_proj": (config.width, keys),
        "self_attn.o_proj": (queries, config.width),
        "mlp.gate_proj": (config.width, config.feed_forward),
        "mlp.up_proj": (config.width, config.feed_forward),
        "mlp.down_proj": (config.feed_forward, config.width),
    }[projection]


def init_adapter(config: DecoderConfig, spec: LoraSpec, seed: int) -> Adapter:
    """A fresh adapter: a uniform in +-1/sqrt(in) (PEFT's Kaiming with a = sqrt(5)), b zero: it changes nothing."""
    adapter = {}
    for number, projection in enumerate(spec.projections):
        rows, columns = projection_shape(config, projection)
        key = jax.random.fold_in(jax.random.key(seed), number)
        bound = 1 / math.sqrt(rows)
        a = jax.random.uniform(key, (config.layers, rows, spec.rank), jnp.float32, -bound, bound)
        adapter[projection] = {"a": a, "b": jnp.zeros((config.layers, spec.rank, columns), jnp.float32)}
    return adapter


def scaled_adapter(adapter: Adapter | None, scale: float) -> Adapter | None:
    """The adapter as `Decoder` wants it: with the scale folded into b."""
    if adapter is None:
        return None
    return {name: {"a": ab["a"], "b": ab["b"] * scale} for name, ab in adapter.items()}


def merge_adapter(params: dict[str, Any], adapter: Adapter, scale: float) -> dict[str, Any]:
    """The base with the adapter added to its kernels, multiplied and added in float32, in float32."""
    layers = {room: dict(rest) for room, rest in params["layers"].items()}
    for projection, ab in adapter.items():
        room, name = projection.split(".")
        change = jnp.matmul(ab["a"], ab["b"], precision="highest") * scale
        kernel = layers[room][name]["kernel"].astype(jnp.float32) + change
        layers[room] = {**layers[room], name: {**layers[room][name], "kernel": kernel}}
    return {**params, "layers": layers}


def _tensor_name(layer: int, projection: str, part: str) -> str:
    return f"base_model.model.model.layers.{layer}.{projection}.lora_{part.upper()}.weight"


def save_adapter(folder: pathlib.Path, adapter: Adapter, spec: LoraSpec, base: str) -> None:
    """Writes `adapter_config.json` and `adapter_model.safetensors` as PEFT does (PEFT holds [R, in] and [out, R])."""
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
    spec = _read_spec(folder)
    path = folder / WEIGHTS_FILE
    if not path.exists():
        raise UserError(f"{path}: not found; an adapter folder holds {CONFIG_FILE} and {WEIGHTS_FILE}")
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a readable safetensors file ({error})") from None
    wanted = {}
    for projection in spec.projections:
        rows, columns = projection_shape(config, projection)
        for layer in range(config.layers):
            wanted[_tensor_name(layer, projection, "a")] = (spec.rank, rows)
            wanted[_tensor_name(layer, projection, "b")] = (columns, spec.rank)
    faults = [f"{name} is missing" for name in wanted if name not in tensors]
    faults += [f"{name} is not wanted" for name in tensors if name not in wanted]
    for name, shape in wanted.items():
        if name in tensors and tensors[name].shape != shape:
            faults.append(f"{name} has shape {list(tensors[name].shape)}, the model wants {list(shape)}")
    if faults:
        raise UserError(f"{path}: the adapter does not fit the model: " + "; ".join(faults[:8]))
    adapter: Adapter = {}
    for projection in spec.projections:
        stack = {
            part: [tensors[_tensor_name(layer, projection, part)].T for layer in range(config.layers)] for part in "ab"
        }
        adapter[projection] = {part: jnp.asarray(np.stack(parts), jnp.float32) for part, parts in stack.items()}
    return adapter, spec


def _read_spec(folder: pathlib.Path) -> LoraSpec:
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
    known = {path.split(".")[1] for path in PROJECTIONS}
    if not isinstance(targets, list) or not set(targets) <= known:
        raise UserError(f"{path}: target_modules = {targets!r}; accepted: a list of {', '.join(sorted(known))}")
    for name in ("r", "lora_alpha"):
        if not isinstance(fields.get(name), int | float):
            raise UserError(f"{path}: {name} is missing or no number")
    order = tuple(path.split(".")[1] for path in PROJECTIONS)
    return LoraSpec(
        rank=fields["r"],
        alpha=fields["lora_alpha"],
        dropout=fields.get("lora_dropout", 0.0),
        targets=tuple(sorted(targets, key=order.index)),
        rank_stabilised=fields.get("use_rslora", False),
    )
