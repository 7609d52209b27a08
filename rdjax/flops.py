"""What a step of distillation costs: FLOPs by count, and the least time that a chip's figures allow for it."""

import dataclasses
import math
from collections.abc import Sequence

from rdjax.chips import Chip
from rdjax.models.config import DecoderConfig
from rdjax.models.decoder import PROJECTIONS
from rdjax.models.lora import LoraSpec, projection_shape


@dataclasses.dataclass(frozen=True)
class Work:
    """One update.

    Attributes:
      lengths: tokens of each sequence that is read.
      predicted: positions whose logits are computed, of all of them.
      remat: the setting `model.remat`.
    """

    lengths: Sequence[int]
    predicted: int
    remat: str


def block_parameters(config: DecoderConfig) -> int:
    """Of all blocks' projections: what multiplies every token."""
    return config.layers * sum(math.prod(projection_shape(config, name)) for name in PROJECTIONS)


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


def teacher_flops(config: DecoderConfig, lengths: Sequence[int]) -> float:
    """Of the teacher's pass over sequences; its logits belong to the step."""
    return 2.0 * block_parameters(config) * sum(lengths) + attention_flops(config, lengths)


def step_flops(config: DecoderConfig, spec: LoraSpec, work: Work) -> float:
    """Of one update of an adapter with the teacher's signals at hand.

    A parameter of the frozen base multiplies a token twice, forward and back to the activations, at 2 FLOPs each; one
    of the adapter three times. The backward pass of attention is twice its forward pass. The head is applied to the
    teacher's states too.
    """
    tokens, head = sum(work.lengths), config.vocab * config.width
    forward = 2.0 * block_parameters(config) * tokens + attention_flops(config, work.lengths)
    backward = forward + attention_flops(config, work.lengths)
    again = forward if work.remat == "full" else 0.0
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

    Every pass over the layers reads the base's share of a chip's tensor axis from memory, after gathering it over the
    fsdp axis; the tensor axis sums activations twice a layer and pass; the gradient is summed over all rows.

    Args:
      mesh: sizes of data, fsdp and tensor.
      weight_bytes: of a number of the base.
    """
    data, fsdp, tensor = mesh
    passes = 3 if work.remat == "full" else 2
    base = weight_bytes * parameters(config) / tensor
    tokens = sum(work.lengths) / (data * fsdp)
    gathers = passes * base * (fsdp - 1) / fsdp
    sums = passes * 2 * config.layers * 2 * (tensor - 1) / tensor * tokens * config.width * 2
    gradient = 2 * 4 * adapter_parameters(config, spec) * (1 - 1 / (data * fsdp))
    return Floor(
        step_flops(config, spec, work) / (data * fsdp * tensor * chip.flops),
        passes * base / chip.bandwidth,
        (gathers + sums + gradient) / chip.network,
    )
