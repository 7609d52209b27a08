"""Describes a decoder: its sizes, and the switches in which model families differ."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class RopeConfig:
    """Describes rotary positions (`models.rotary` makes them from the fields of a checkpoint).

    Attributes:
      frequencies: angular frequencies. Each rotates two numbers of a head; the numbers behind them stay as they are.
      amplitude: multiplies what is rotated (the attention factor of YaRN and LongRoPE).
      interleaved: a frequency rotates two neighbours of a head; else one number of each half of the rotated part.
      long_frequencies: those of sequences longer than `DecoderConfig.max_positions` (LongRoPE); None: the same.
      query_growth, query_period: multiply the query at a position by 1 + growth * ln(1 + floor(position / period)).
    """

    frequencies: tuple[float, ...]
    amplitude: float = 1.0
    interleaved: bool = False
    long_frequencies: tuple[float, ...] | None = None
    query_growth: float = 0.0
    query_period: int = 1


# Parts of a block that mix tokens, of which a layer has one: attention, attention of other sizes (`global_attention`),
# and a gated delta net (`models.delta_net`). Those that share compute no keys and values: they attend to those of the
# last layer before them that has the part named here. Layers that share come last.
SHARING = {"shared_self_attn": "self_attn", "shared_global_attn": "global_attn"}
MIXERS = ("self_attn", "global_attn", *SHARING, "linear_attn")
MLPS = ("mlp", "shared_mlp")  # of which a layer has one; the second in layers that share keys and values
PARTS = (*MIXERS, *MLPS)


@dataclasses.dataclass(frozen=True)
class AttentionSizes:
    """Describes what the attentions of a decoder differ in.

    Attributes:
      kv_heads, head_width: sizes.
      keys_as_values: values are the projected keys, before they are normed and rotated.
    """

    kv_heads: int
    head_width: int
    keys_as_values: bool = False


@dataclasses.dataclass(frozen=True)
class LayerKind:
    """Describes what can differ between the layers of one decoder.

    Attributes:
      rope: rotary positions; None: queries and keys are not rotated.
      window: number of tokens that a token attends to, the last of which is itself; None: all up to itself.
      mixer: one of `MIXERS`.
    """

    rope: RopeConfig | None = None
    window: int | None = None
    mixer: str = "self_attn"

    @property
    def parts(self) -> tuple[str, str]:
        """Returns those of `PARTS` that the layer has: what mixes its tokens, and its MLP."""
        return self.mixer, MLPS[self.mixer in SHARING]


@dataclasses.dataclass(frozen=True)
class DeltaNetConfig:
    """Describes the gated delta nets of a decoder.

    Attributes:
      key_heads, value_heads: each key head serves value_heads / key_heads value heads.
      key_width, value_width: of a head.
      taps: tokens that the convolution reads, the last of which is the token itself.
    """

    key_heads: int
    value_heads: int
    key_width: int
    value_width: int
    taps: int

    @property
    def keys(self) -> int:
        """Returns the width of all keys, which is that of all queries."""
        return self.key_heads * self.key_width

    @property
    def values(self) -> int:
        """Returns the width of all values."""
        return self.value_heads * self.value_width

    @property
    def channels(self) -> int:
        """Returns the number of channels of the convolution: queries, keys and values."""
        return 2 * self.keys + self.values


@dataclasses.dataclass(frozen=True)
class LayerEmbeddings:
    """Describes embeddings of tokens that each layer adds: per-layer embeddings (Gemma 4).

    Attributes:
      vocab, width: of the table, which has this width for each layer.
    """

    vocab: int
    width: int


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """Describes a decoder (shape letters in `rdjax/__init__.py`). The defaults are Llama's.

    Attributes:
      vocab, width, layers, heads, kv_heads, head_width, feed_forward: sizes.
      norm_epsilon: added to the mean square in norms.
      max_positions: longest sequence that the model takes.
      long_positions: longest sequence that it takes with `RopeConfig.long_frequencies`; None: it has none.
      tied_embeddings: the output head is the embedding.
      family: the key of `families.registry.FAMILIES` that reads its files.
      pattern: the kinds of the layers, repeated from the first layer on.
      qkv_bias, o_bias, mlp_bias: which projections have a bias.
      activation: one of `block.ACTIVATIONS`, on the gate of the MLP.
      norm: one of `norm.NORMS`.
      norms: where a block normalises: "before" attention and MLP, "after" them (before the residual sum), or "both".
      qk_norm: norms of queries and keys before they are rotated: "", of each "head", or of the "whole" projection.
      attention_gate: the query projection has a gate behind each head's query; what the head mixes is multiplied by
        the sigmoid of its gate.
      value_norm: values are normed, without a weight.
      global_attention: sizes of the mixer "global_attn"; None: no layer has it.
      shared_feed_forward: the MLP's size in layers that share keys and values; None: feed_forward.
      layer_embeddings: embeddings that each layer adds; None: there are none.
      layer_scale: a layer's output is multiplied by a number of its own.
      score_scale: multiplies attention scores; None: head_width ** -0.5.
      score_softcap, logit_softcap: c in c * tanh(x / c), of attention scores and of logits; None: no cap.
      embedding_scale, residual_scale, logit_scale: multiply embeddings, the output of attention and MLP, and logits.
      delta_net: sizes of gated delta nets; None: no layer has one.
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
    long_positions: int | None = None
    family: str = "llama"
    pattern: tuple[LayerKind, ...] = (LayerKind(),)
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    activation: str = "silu"
    norm: str = "weight"
    norms: str = "before"
    qk_norm: str = ""
    attention_gate: bool = False
    value_norm: bool = False
    global_attention: AttentionSizes | None = None
    shared_feed_forward: int | None = None
    layer_embeddings: LayerEmbeddings | None = None
    layer_scale: bool = False
    score_scale: float | None = None
    score_softcap: float | None = None
    logit_softcap: float | None = None
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    logit_scale: float = 1.0
    delta_net: DeltaNetConfig | None = None

    def for_sequences_of(self, tokens: int) -> "DecoderConfig":
        """Returns the config for sequences of up to `tokens` tokens: with long frequencies if they need them."""
        if self.long_positions is None or tokens <= self.max_positions:
            return self
        pattern = tuple(
            dataclasses.replace(kind, rope=dataclasses.replace(kind.rope, frequencies=kind.rope.long_frequencies))
            for kind in self.pattern
        )
        return dataclasses.replace(self, pattern=pattern, max_positions=self.long_positions)

    @property
    def kinds(self) -> tuple[LayerKind, ...]:
        """Returns the different kinds of layers, in order of appearance."""
        return tuple(dict.fromkeys(self.kind_of(layer) for layer in range(self.layers)))

    @property
    def mixers(self) -> tuple[str, ...]:
        """Returns those of `MIXERS` that layers have."""
        return tuple(part for part in self.parts if part in MIXERS)

    @property
    def parts(self) -> tuple[str, ...]:
        """Returns those of `PARTS` that layers have."""
        return tuple(part for part in PARTS if any(part in kind.parts for kind in self.kinds))

    @property
    def alike(self) -> bool:
        """Tells whether all layers have the same parts."""
        return len({kind.parts for kind in self.kinds}) == 1

    @property
    def shares(self) -> bool:
        """Tells whether layers share keys and values."""
        return any(mixer in SHARING for mixer in self.mixers)

    def between(self, begin: int, end: int) -> "DecoderConfig":
        """Returns the config of the layers from `begin` to before `end` alone."""
        pattern = tuple(self.kind_of(layer) for layer in range(begin, end))
        return dataclasses.replace(self, layers=end - begin, pattern=pattern)

    def kind_of(self, layer: int) -> LayerKind:
        """Returns the kind of a layer."""
        return self.pattern[layer % len(self.pattern)]

    def layers_of(self, path: str) -> tuple[int, ...]:
        """Returns the layers that have a parameter, a projection or a part of a block ("self_attn.q_proj")."""
        part = path.removeprefix("layers.").split(".")[0]
        return tuple(layer for layer in range(self.layers) if part not in PARTS or part in self.kind_of(layer).parts)

    def attention_sizes(self, mixer: str) -> AttentionSizes:
        """Returns the sizes of an attention; one that shares has those of the other."""
        if SHARING.get(mixer, mixer) == "global_attn":
            return self.global_attention
        return AttentionSizes(self.kv_heads, self.head_width)
