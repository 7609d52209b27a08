"""What a step of distillation costs: FLOPs by count, and the least time that a chip's figures allow for it."""

import dataclasses
import math
from collections.abc import Sequence

from rdjax.models.config import DecoderConfig
from rdjax.models.decoder import PROJECTIONS
from rdjax.models.lora import LoraSpec, projection_shape
from rdjax.plan.chips import Chip


@dataclasses.dataclass(frozen=True)
class Work:
    """One update.

    Attributes:
      lengths: tokens of each sequence that is read.
      predicted: positions whose logits are computed, of all of them.
      remat: the setting `model.remat`.
      accumulation: micro-batches; each goes through the layers by itself.
    """

    lengths: Sequence[int]
    predicted: int
    remat: str
    accumulation: int


def block_parameters(config: DecoderConfig) -> int:
    """Of all blocks' projections: what multiplies every token."""
    return config.layers * sum(math.prod(projection_shape(config, name)) for name in PROJECTIONS)


def parameters_again(config: DecoderConfig, remat: str) -> int:
    """Those of `block_parameters` that the backward pass multiplies once more to have a layer's states anew: all but
    each layer's last projection, whose product it has no use for.
    """
    if remat != "full":
        return 0
    return block_parameters(config) - config.layers * math.prod(projection_shape(config, PROJECTIONS[-1]))


def parameters(config: DecoderConfig) -> int:
    """Of the whole model, norms and biases left out."""
    tables = 1 if config.tied_embeddings else 2
    return block_parameters(config) + tables * config.vocab * config.width


def adapter_parameters(config: DecoderConfig, spec: LoraSpec) -> int:
    """Of an adapter."""
    return config.layers * spec.rank * sum(sum(projection_shape(config, name)) for name in spec.projections)


def attention_flops(config: DecoderConfig, lengths: Sequence[int]) -> float:
    """Of one forward pass: two products over the half of all pairs of tokens that a causal mask leaves."""
    return sum(2.0 * length**2 * config.heads * config.head_width * config.layers for length in lengths)


def teacher_flops(config: DecoderConfig, lengths: Sequence[int], prefix: int = 0) -> float:
    """Of the teacher's pass over sequences, less what all begin with and is read once for all; its logits belong to the
    step. Of scanned layers, as in `step_flops`: those that are looped over leave a little out (`models.layers`).
    """
    own = sum(lengths) - prefix * len(lengths)
    attention = attention_flops(config, lengths) - attention_flops(config, [prefix] * len(lengths))
    return 2.0 * block_parameters(config) * own + attention


def step_flops(config: DecoderConfig, spec: LoraSpec, work: Work) -> float:
    """Of one update of an adapter with the teacher's signals at hand.

    A parameter of the frozen base multiplies a token twice, forward and back to the activations, at 2 FLOPs each; one
    of the adapter three times. The backward pass of attention is twice its forward pass. The head is applied to the
    teacher's states too.
    """
    tokens, head = sum(work.lengths), config.vocab * config.width
    attention = attention_flops(config, work.lengths)
    forward = 2.0 * block_parameters(config) * tokens + attention
    backward = forward + attention
    again = 0.0 if work.remat == "none" else 2.0 * parameters_again(config, work.remat) * tokens + attention
    adapter = 6.0 * adapter_parameters(config, spec) * tokens
    return forward + backward + again + adapter + 3 * 2.0 * head * work.predicted


@dataclasses.dataclass(frozen=True)
class Floor:
    """The least seconds an update can take on a mesh, by what would hold it up; all three can go on at once."""

    compute: float
    memory: float
    network: float

    @property
    def seconds(self) -> float:
        return max(self.compute, self.memory, self.network)

    @property
    def efficiency(self) -> float:
        """Of the chips' peak: the share that is spent on the step's FLOPs."""
        return self.compute / self.seconds


def step_floor(
    config: DecoderConfig, spec: LoraSpec, work: Work, chip: Chip, mesh: Sequence[int], weight_bytes: int
) -> Floor:
    """A model of an update's time from published figures, not a measurement.

    Each micro-batch gathers a chip's share of the base on the tensor axis over the fsdp axis, once for the forward and
    once for the backward pass, and reads it from memory for every product; the tensor axis sums activations twice a
    layer and pass, and once where a layer is computed anew; the gradient is summed over all rows. What is summed has 16
    bits, and a sum sends everything twice.

    Args:
      mesh: sizes of data, fsdp and tensor.
      weight_bytes: of a number of the base.
    """
    data, fsdp, tensor = mesh
    again = parameters_again(config, work.remat)
    share = weight_bytes * work.accumulation / tensor
    blocks, head = block_parameters(config), config.vocab * config.width
    tokens = sum(work.lengths) / (data * fsdp)
    gathers = share * (2 * blocks + head) * (fsdp - 1) / fsdp
    sums = (5 if again else 4) * config.layers * 2 * tokens * config.width * (1 - 1 / tensor) * 2
    gradient = 2 * adapter_parameters(config, spec) * (1 - 1 / (data * fsdp)) * 2
    return Floor(
        step_flops(config, spec, work) / (data * fsdp * tensor * chip.flops),
        share * (2 * blocks + again + 2 * head) / chip.bandwidth,
        (gathers + sums + gradient) / chip.network,
    )
