"""Describes a decoder: its sizes, and the switches in which model families differ."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class RopeConfig:
    """Describes a rotary position embedding; the scaling fields are those of Hugging Face's `rope_parameters`.

    Attributes:
      theta: base of the geometric series of wavelengths.
      kind: one of `rotary.FREQUENCIES`.
      factor: context length divided by the length in training ("linear", "llama3").
      low_freq_factor, high_freq_factor, original_context: limits between the frequencies that are divided by `factor`,
        blended, and unchanged ("llama3").
      fraction: part of each head that is rotated, from its first number on.
    """

    theta: float = 10000.0
    kind: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context: int = 8192
    fraction: float = 1.0


@dataclasses.dataclass(frozen=True)
class LayerKind:
    """Describes what can differ between the layers of one decoder.

    Attributes:
      rope: rotary positions; None: queries and keys are not rotated.
      window: number of tokens that a token attends to, the last of which is itself; None: all up to itself.
    """

    rope: RopeConfig | None = RopeConfig()
    window: int | None = None


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """Describes a decoder (shape letters in `rdjax/__init__.py`). The defaults are Llama's.

    Attributes:
      vocab, width, layers, heads, kv_heads, head_width, feed_forward: sizes.
      norm_epsilon: added to the mean square in norms.
      max_positions: longest sequence that the model was trained for.
      tied_embeddings: the output head is the embedding.
      family: the key of `families.registry.FAMILIES` that reads its files.
      pattern: the kinds of the layers, repeated from the first layer on.
      qkv_bias, o_bias, mlp_bias: which projections have a bias.
      activation: one of `block.ACTIVATIONS`, on the gate of the MLP.
      norm: one of `norm.NORMS`.
      norms: where a block normalises: "before" attention and MLP, "after" them (before the residual sum), or "both".
      qk_norm: norms of queries and keys before they are rotated: "", of each "head", or of the "whole" projection.
      score_scale: multiplies attention scores; None: head_width ** -0.5.
      score_softcap, logit_softcap: c in c * tanh(x / c), of attention scores and of logits; None: no cap.
      embedding_scale, residual_scale, logit_scale: multiply embeddings, the output of attention and MLP, and logits.
    """

    vocab: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_width: int
    feed_forward: int
    norm_epsilon: float
    max_positions: int
    tied_embeddings: bool
    family: str = "llama"
    pattern: tuple[LayerKind, ...] = (LayerKind(),)
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    activation: str = "silu"
    norm: str = "weight"
    norms: str = "before"
    qk_norm: str = ""
    score_scale: float | None = None
    score_softcap: float | None = None
    logit_softcap: float | None = None
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    logit_scale: float = 1.0

    @property
    def kinds(self) -> tuple[LayerKind, ...]:
        """Returns the different kinds of layers, in order of appearance."""
        return tuple(dict.fromkeys(self.kind_of(layer) for layer in range(self.layers)))

    def kind_of(self, layer: int) -> LayerKind:
        """Returns the kind of a layer."""
        return self.pattern[layer % len(self.pattern)]
