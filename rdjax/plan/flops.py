"""Counts the FLOPs of a distillation step, and bounds its time from below by the figures of a chip."""

import dataclasses
import math
from collections.abc import Sequence

from rdjax.models.config import DecoderConfig
from rdjax.models.decoder import projection_shapes
from rdjax.models.delta_net import CHUNK
from rdjax.models.lora import LoraSpec, adapted_projections
from rdjax.plan.chips import Chip


@dataclasses.dataclass(frozen=True)
class Work:
    """Describes one update.

    Attributes:
      lengths: number of tokens of each sequence.
      predicted: number of positions with logits, in all sequences together.
      remat: the setting `model.remat`.
      accumulation: number of micro-batches; each is a pass through the layers of its own.
    """

    lengths: Sequence[int]
    predicted: int
    remat: str
    accumulation: int


def block_parameters(config: DecoderConfig) -> int:
    """Counts the parameters of all blocks' kernels, which multiply every token."""
    projections = sum(
        len(config.layers_of(path)) * math.prod(shape) for path, shape in projection_shapes(config).items()
    )
    added = config.layer_embeddings.width if config.layer_embeddings else 0
    return projections + config.layers * 2 * config.width * added


def recomputed_parameters(config: DecoderConfig, remat: str) -> int:
    """Counts the block parameters that multiply every token once more in the backward pass.

    Those of each layer's last projection do not: nothing in the backward pass reads its product.
    """
    if remat != "full":
        return 0
    last = [(path, shape) for path, shape in projection_shapes(config).items() if path.endswith("down_proj")]
    return block_parameters(config) - sum(len(config.layers_of(path)) * math.prod(shape) for path, shape in last)


def parameters(config: DecoderConfig) -> int:
    """Counts the parameters of the whole model, without norms and biases."""
    tables = 1 if config.tied_embeddings else 2
    net, nets = config.delta_net, len(config.layers_of("linear_attn"))
    others = nets * (net.channels * net.taps + net.value_heads) if net else 0  # the convolution, and rates of decay
    if config.layer_embeddings is not None:
        others += config.layers * config.layer_embeddings.width * (config.layer_embeddings.vocab + config.width)
    others += config.layers if config.layer_scale else 0
    return block_parameters(config) + tables * config.vocab * config.width + others


def adapter_parameters(config: DecoderConfig, spec: LoraSpec) -> int:
    """Counts the parameters of an adapter."""
    return spec.rank * sum(
        len(config.layers_of(path)) * sum(shape) for path, shape in adapted_projections(config, spec).items()
    )


def attention_flops(config: DecoderConfig, lengths: Sequence[int]) -> float:
    """Counts the FLOPs that mix tokens in one forward pass: two products for every query and the keys it attends to."""
    attentions = [kind for kind in map(config.kind_of, range(config.layers)) if kind.mixer != "linear_attn"]
    products = sum(
        config.attention_sizes(kind.mixer).head_width * _attended_pairs(length, kind.window)
        for kind in attentions
        for length in lengths
    )
    return 4.0 * config.heads * products + _delta_net_flops(config, lengths)


def _delta_net_flops(config: DecoderConfig, lengths: Sequence[int]) -> float:
    """Counts the FLOPs of the delta rule in one forward pass, by chunks as `models.delta_net` computes it."""
    net = config.delta_net
    if net is None:
        return 0.0
    total = 0.0
    for length in lengths:
        chunk = min(CHUNK, length)
        # Of a token and head: scores of keys and of queries with a chunk, the triangular system and the values that it
        # gives, three products with the memory.
        per_token = 4 * chunk * net.key_width + 3 * chunk * net.value_width + 6 * net.key_width * net.value_width
        total += length * per_token
    return len(config.layers_of("linear_attn")) * net.value_heads * total


def _attended_pairs(length: int, window: int | None) -> float:
    """Counts the pairs of query and key under a causal mask as an area: half a square, less what no window covers."""
    outside = 0 if window is None else max(length - window, 0)
    return (length**2 - outside**2) / 2


def teacher_flops(config: DecoderConfig, lengths: Sequence[int], prefix: int = 0) -> float:
    """Counts the FLOPs of the teacher's pass, without logits, which belong to the step.

    Exact for stacked layers, as is `step_flops`; unstacked ones leave a little out (`models.layers`).

    Args:
      lengths: number of tokens of each sequence.
      prefix: number of tokens at the start of all sequences that are read once for many batches, and not counted.
    """
    tokens = sum(lengths) - prefix * len(lengths)
    attention = attention_flops(config, lengths) - attention_flops(config, [prefix] * len(lengths))
    return 2.0 * block_parameters(config) * tokens + attention


def step_flops(config: DecoderConfig, spec: LoraSpec, work: Work) -> float:
    """Counts the FLOPs of one update of an adapter, without the teacher's pass.

    A parameter of the frozen base multiplies a token twice, forward and back to the activations, at 2 FLOPs each; a
    parameter of the adapter three times. The backward pass of attention is twice its forward pass. The head is applied
    to the teacher's states too.
    """
    tokens, head = sum(work.lengths), config.vocab * config.width
    attention = attention_flops(config, work.lengths)
    forward = 2.0 * block_parameters(config) * tokens + attention
    backward = forward + attention
    recomputed = 0.0 if work.remat == "none" else 2.0 * recomputed_parameters(config, work.remat) * tokens + attention
    adapter = 6.0 * adapter_parameters(config, spec) * tokens
    return forward + backward + recomputed + adapter + 3 * 2.0 * head * work.predicted


@dataclasses.dataclass(frozen=True)
class Floor:
    """Holds lower bounds on the seconds of an update; the three can overlap.

    Attributes:
      compute: by the FLOPs.
      memory: by reading the weights.
      network: by collectives between chips.
    """

    compute: float
    memory: float
    network: float

    @property
    def seconds(self) -> float:
        """Returns the largest bound."""
        return max(self.compute, self.memory, self.network)


def step_floor(
    config: DecoderConfig, spec: LoraSpec, work: Work, chip: Chip, mesh: Sequence[int], weight_bytes: int
) -> Floor:
    """Models the time of an update from published figures; it measures nothing.

    Each micro-batch gathers the base over the fsdp axis, once for the forward and once for the backward pass, and reads
    it from memory for every product. The tensor axis sums activations twice a layer and pass, and once more where
    layers are recomputed. The gradient is summed over all rows. Sums have 16 bits, and send everything twice.

    Args:
      mesh: sizes of data, fsdp and tensor.
      weight_bytes: of a number of the base.
    """
    data, fsdp, tensor = mesh
    recomputed = recomputed_parameters(config, work.remat)
    share = weight_bytes * work.accumulation / tensor
    blocks, head = block_parameters(config), config.vocab * config.width
    tokens = sum(work.lengths) / (data * fsdp)
    gathers = share * (2 * blocks + head) * (fsdp - 1) / fsdp
    sums = (5 if recomputed else 4) * config.layers * 2 * tokens * config.width * (1 - 1 / tensor) * 2
    gradient = 2 * adapter_parameters(config, spec) * (1 - 1 / (data * fsdp)) * 2
    return Floor(
        step_flops(config, spec, work) / (data * fsdp * tensor * chip.flops),
        share * (2 * blocks + recomputed + 2 * head) / chip.bandwidth,
        (gathers + sums + gradient) / chip.network,
    )
