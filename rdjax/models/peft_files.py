"""Reads and writes LoRA adapters in the format of PEFT, for the module names of each family.

A module is what PEFT adapts: a linear layer of the model class in transformers. It holds one projection of the decoder,
or several that the family fuses (`qkv_proj`).
"""

import pathlib
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from rdjax.errors import UserError, needing
from rdjax.models.config import DecoderConfig
from rdjax.models.decoder import projection_shapes
from rdjax.models.families.registry import FAMILIES
from rdjax.models.lora import Adapter, LoraSpec
from rdjax.models.peft_config import CONFIG_FILE, WEIGHTS_FILE, missing_file, own_scale, read_fields
from rdjax.models.tensor_files import all_finite
from rdjax.models.weights import table_name, used_rows
from rdjax.storage.files import json_text, replace_text, replacing
from rdjax.storage.sums import damaged_files, is_ours

UNSET_LAYERS = (None, [], "")  # the layer 0 is set
SOME_LAYERS = ("layers_to_transform", "layers_pattern", "exclude_modules")  # with them some layers may have no adapter

_TENSOR = re.compile(r"(?:base_model\.model\.)?(?P<module>.+)\.lora_(?P<part>[AB])(?:\.default)?\.weight")


class Module(NamedTuple):
    """Describes a linear layer that PEFT adapts.

    Attributes:
      name: in the family's table, with {layer}.
      inputs, outputs: sizes.
      columns: for each of its projections, by their paths, which outputs are its own.
      layers: that have it.
    """

    name: str
    inputs: int
    outputs: int
    columns: dict[str, slice]
    layers: tuple[int, ...]

    @property
    def target(self) -> str:
        """Returns what PEFT calls it in `target_modules`."""
        return self.name.split(".")[-1]


def adapter_modules(config: DecoderConfig) -> list[Module]:
    """Returns the modules of a decoder's layers."""
    modules = []
    for row, shapes, layers in used_rows(config):
        paths = [path.removeprefix("layers.").removesuffix(".kernel") for path in row.paths]
        if paths[0] not in projection_shapes(config):
            continue
        ends = np.cumsum([columns for _, columns in shapes]).tolist()
        slices = [slice(begin, end) for begin, end in zip([0, *ends], ends, strict=False)]
        modules.append(
            Module(
                row.tensor.removesuffix(".weight"),
                shapes[0][0],
                ends[-1],
                dict(zip(paths, slices, strict=True)),
                layers,
            )
        )
    return modules


def save_adapter(folder: pathlib.Path, adapter: Adapter, config: DecoderConfig, spec: LoraSpec, base: str) -> None:
    """Writes `adapter_config.json` and `adapter_model.safetensors`, which transformers, PEFT and vLLM load.

    The adapters of fused projections stand in one pair of matrices: [a_q, a_k, a_v] and a block diagonal of b_q, b_k,
    b_v, of the sum of their ranks. All modules then have the largest rank: not every vLLM reads `rank_pattern`.

    Args:
      base: hub id or folder of the base model.

    Raises:
      UserError: a number of the adapter is not finite.
    """
    numpy_adapter = {path: {part: np.asarray(x, np.float32) for part, x in ab.items()} for path, ab in adapter.items()}
    modules = [module for module in adapter_modules(config) if module.columns.keys() & adapter.keys()]
    rank = max(sum(adapter[path]["a"].shape[-1] for path in module.columns if path in adapter) for module in modules)
    tensors = {}
    for module in modules:
        name = "base_model.model." + FAMILIES[config.family].module_prefix + module.name.removeprefix("model.")
        for number, layer in enumerate(module.layers):
            a_XR, b_RX = _packed(module, numpy_adapter, number, rank)
            tensors[f"{name}.lora_A.weight".format(layer=layer)] = np.ascontiguousarray(a_XR.T)
            tensors[f"{name}.lora_B.weight".format(layer=layer)] = np.ascontiguousarray(b_RX.T)
    written = spec.with_rank(rank)
    fields = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": written.rank,
        "lora_alpha": written.alpha,
        "lora_dropout": spec.dropout,
        "target_modules": _target_modules(config, sorted({module.target for module in modules})),
        "use_rslora": spec.rank_stabilised,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    check_finite(tensors, f"the adapter for {folder}")
    folder.mkdir(parents=True, exist_ok=True)
    size = sum(tensor.nbytes for tensor in tensors.values())
    with needing(size), replacing(folder / WEIGHTS_FILE) as temporary:
        save_file(tensors, temporary, metadata={"format": "pt"})
    replace_text(folder / CONFIG_FILE, json_text(fields))


def _packed(module: Module, adapter: dict[str, dict[str, np.ndarray]], number: int, rank: int):
    """Returns the matrices [in, rank] and [rank, out] of a module in one of its layers, filled up with zeros."""
    a_XR, b_RX = np.zeros((module.inputs, rank), np.float32), np.zeros((rank, module.outputs), np.float32)
    begin = 0
    for path, columns in module.columns.items():
        if path in adapter:
            a, b = adapter[path]["a"][number], adapter[path]["b"][number]
            end = begin + a.shape[-1]
            a_XR[:, begin:end], b_RX[begin:end, columns] = a, b
            begin = end
    return a_XR, b_RX


def _target_modules(config: DecoderConfig, targets: list[str]) -> list[str] | str:
    """Returns the names of the adapted modules; a pattern where other parts of a model have modules of these names."""
    prefix = FAMILIES[config.family].module_prefix
    return targets if prefix == "model." else rf"{re.escape(prefix)}.*\.({'|'.join(targets)})$"


def load_adapter(folder: pathlib.Path, config: DecoderConfig, base: dict[str, Any]) -> tuple[Adapter, LoraSpec]:
    """Reads a LoRA adapter of PEFT. Its tensors say what is adapted, and by which ranks.

    Args:
      base: parameters of the model; embeddings that the adapter has saved must equal its own.

    Returns:
      The adapter and its spec, with one scale for all modules: where alphas or ranks differ, b makes up for it.

    Raises:
      UserError: a file is missing or unreadable, it is more than a LoRA, or its tensors do not fit the decoder.
    """
    check_undamaged(folder)
    fields, path = read_fields(folder / CONFIG_FILE), folder / WEIGHTS_FILE
    all_modules = adapter_modules(config)
    modules = {
        module.name.format(layer=layer): (module, number)
        for module in all_modules
        for number, layer in enumerate(module.layers)
    }
    pairs = _pair_tensors(_read_tensors(path), modules, config, base, fields, path)
    known = LoraSpec(
        fields["r"], fields["lora_alpha"], fields.get("lora_dropout") or 0.0, (), bool(fields.get("use_rslora"))
    )
    stacks: dict[str, list] = {}
    for name, (full_name, a_XR, b_RX) in pairs.items():
        module, number = modules[name]
        ratio = own_scale(full_name, a_XR.shape[1], fields) / known.scale
        for projection, columns in module.columns.items():
            stack = stacks.setdefault(projection, [None] * len(module.layers))
            stack[number] = (a_XR, b_RX[:, columns] * np.float32(ratio))
    packed = any(len(modules[name][0].columns) > 1 for name in pairs)
    adapter = {path: _stack(stacks[path], packed) for path in projection_shapes(config) if path in stacks}
    fillers = _fillers(adapter, all_modules)
    adapter = {path: ab for path, ab in adapter.items() if path not in fillers}
    rank = max(ab["a"].shape[-1] for ab in adapter.values())
    spec = known if rank == known.rank else known.with_rank(rank)
    targets = tuple(dict.fromkeys(path.split(".")[-1] for path in adapter))
    return adapter, LoraSpec(spec.rank, spec.alpha, spec.dropout, targets, spec.rank_stabilised)


def _stack(layers: list[tuple[np.ndarray, np.ndarray] | None], packed: bool) -> dict[str, Any]:
    """Stacks the matrices of all layers; zeros stand for a layer that has none, and fill up smaller ranks.

    Args:
      packed: leave out the part of the rank of which b is zero: the other projections' of a fused module.
    """
    found = [matrices for matrices in layers if matrices is not None]
    rank, (inputs, outputs) = max(a.shape[1] for a, _ in found), (found[0][0].shape[0], found[0][1].shape[1])
    a_LXR = np.zeros((len(layers), inputs, rank), np.float32)
    b_LRX = np.zeros((len(layers), rank, outputs), np.float32)
    for layer, matrices in enumerate(layers):
        if matrices is not None:
            own = matrices[0].shape[1]
            a_LXR[layer, :, :own], b_LRX[layer, :own] = matrices
    used_R = np.any(b_LRX != 0, axis=(0, 2))
    if packed and used_R.any():
        a_LXR, b_LRX = a_LXR[:, :, used_R], b_LRX[:, used_R]
    return {"a": jnp.asarray(a_LXR), "b": jnp.asarray(b_LRX)}


def _fillers(adapter: Adapter, modules: Sequence[Module]) -> set[str]:
    """Returns the projections that a fused module brings along without adapting them: b is zero, unlike another's."""
    zero = {path for path, ab in adapter.items() if not np.any(ab["b"])}
    groups = [set(module.columns) for module in modules]
    return {path for group in groups if group - zero for path in group & zero if len(group) > 1}


def check_undamaged(folder: pathlib.Path) -> None:
    """Checks the files of an adapter against SHA256SUMS, which rdjax writes beside them.

    Raises:
      UserError: names one that is not what was written.
    """
    files = (WEIGHTS_FILE, CONFIG_FILE)
    damaged = damaged_files(folder) if is_ours(folder, files) else []
    if damaged:
        raise UserError(
            f"{folder / damaged[0]}: is damaged (not what SHA256SUMS beside it says); in a run's folder delete "
            "eval.json, and the run makes it again from its checkpoints; if you changed it, delete SHA256SUMS"
        )


def _pair_tensors(
    tensors: dict[str, np.ndarray],
    modules: dict[str, tuple[Module, int]],
    config: DecoderConfig,
    base: dict[str, Any],
    fields: dict[str, Any],
    path: pathlib.Path,
) -> dict[str, tuple[str, np.ndarray, np.ndarray]]:
    """Returns every adapted module's name in the file, and its matrices [in, rank] and [rank, out].

    Raises:
      UserError: names the first tensors that do not fit the decoder.
    """
    parts: dict[str, dict[str, np.ndarray]] = {}
    full_names: dict[str, str] = {}
    faults = []
    for name, tensor in tensors.items():
        match = _TENSOR.fullmatch(name)
        module = table_name(match["module"], config.family) if match else ""
        if module in modules:
            parts.setdefault(module, {})[match["part"]] = tensor.astype(np.float32)
            full_names[module] = match["module"]
        elif not _equals_base(table_name(name.removeprefix("base_model.model."), config.family), tensor, base):
            faults.append(f"{name} is not wanted")
    pairs = {}
    for name, found in parts.items():
        module, a, b = modules[name][0], found.get("A"), found.get("B")
        if a is None or b is None:
            faults.append(f"{name}.lora_{'A' if a is None else 'B'}.weight is missing")
        elif a.shape[1:] != (module.inputs,) or b.shape != (module.outputs, len(a)):
            wanted = [module.outputs, "r"], ["r", module.inputs]
            faults.append(
                f"{name} has B {list(b.shape)} and A {list(a.shape)}, the model wants {wanted[0]} and {wanted[1]}"
            )
        else:
            pairs[name] = full_names[name], a.T, b.T
    faults += [f"{name} has none" for name in _missing_layers(set(parts), modules, fields)]
    if not pairs and not faults:
        faults.append("it has no tensor of a LoRA")
    if faults:
        raise UserError(f"{path}: the adapter does not fit the model: " + "; ".join(faults[:8]))
    return pairs


def _missing_layers(found: set[str], modules: dict[str, tuple[Module, int]], fields: dict[str, Any]) -> list[str]:
    """Returns the modules that have no tensors, though the config says that all layers are adapted."""
    targets = fields.get("target_modules")
    if not isinstance(targets, list) or any(fields.get(name) not in UNSET_LAYERS for name in SOME_LAYERS):
        return []
    adapted = {modules[name][0].name for name in found if modules[name][0].target in targets}
    return [name for name, (module, _) in modules.items() if module.name in adapted and name not in found]


def _equals_base(name: str, tensor: np.ndarray, base: dict[str, Any]) -> bool:
    """Tells whether a tensor is the base's own embedding or head, which PEFT saves in some cases."""
    flat = flatten_dict(base, sep=".")
    own = {"model.embed_tokens.weight": flat["embed_tokens"]}
    own["lm_head.weight"] = flat["lm_head.kernel"].T if "lm_head.kernel" in flat else flat["embed_tokens"]
    if name not in own or own[name].shape != tensor.shape:
        return False
    return np.array_equal(np.asarray(own[name]).astype(tensor.dtype), tensor)


def _read_tensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Reads `adapter_model.safetensors`.

    Raises:
      UserError: it is missing or unreadable.
    """
    if not path.exists():
        raise UserError(missing_file(path))
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a readable safetensors file ({error})") from None
    check_finite(tensors, str(path))
    return tensors


def check_finite(tensors: dict[str, np.ndarray], where: str) -> None:
    """Checks the numbers of an adapter.

    Raises:
      UserError: one is not finite; names its tensor.
    """
    bad = next((name for name, tensor in tensors.items() if not all_finite(tensor)), None)
    if bad is not None:
        raise UserError(f"{where}: {bad} has numbers that are not finite (NaN or infinity)")
