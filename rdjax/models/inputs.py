"""Defines what the blocks of a decoder read in a forward pass, and what they keep of its tokens."""

from typing import Any, NamedTuple

import jax

from rdjax.models.delta_net import DeltaState
from rdjax.models.linear import Dropout
from rdjax.models.packing import Packing
from rdjax.models.rotary import Angles

KeysValues = tuple[jax.Array, jax.Array]
Past = KeysValues | DeltaState  # what a layer knows of tokens before: of attention, or of a delta net


class KindInputs(NamedTuple):
    """Holds what the layers of one kind (`config.LayerKind`) share in a forward pass.

    Attributes:
      angles: the rotation of queries and keys; None: they are not rotated.
      mask_BTS: which keys a token attends to; None: its own past in its sequence.
      prefix_mask_BTC: which tokens of the prefix it attends to; None: all.
    """

    angles: Angles | None
    mask_BTS: jax.Array | None
    prefix_mask_BTC: jax.Array | None


class PassInputs(NamedTuple):
    """Holds what all layers share in a forward pass.

    Attributes:
      kinds: for each of `DecoderConfig.kinds`.
      packing: of rows that hold several sequences.
      cache_index: slot of the cache for the first new token; None: there is no cache.
      padding_B: tokens of padding at the beginning of each row, for delta nets, which no mask reaches; None: none.
      dropout: its key is not read; each layer has its own.
    """

    kinds: tuple[KindInputs, ...]
    packing: Packing | None
    cache_index: jax.Array | None
    padding_B: jax.Array | None
    dropout: Dropout | None


class LayerInputs(NamedTuple):
    """Holds what one layer reads.

    Attributes:
      params: of the parts of the block that the layer has.
      kind: index into `DecoderConfig.kinds`; None where there is only one, or where the caller knows it.
      embedding_BTJ: what the layer's embeddings have for the tokens; None: there are none.
      adapter: {projection: {"a": [in, R], "b": [R, out]}}.
      dropout_key: of the layer.
      prefix: of tokens before all rows: keys and values [K, C, H], or a state without an axis of rows.
      cache: of each row's tokens so far: keys and values [K, B, S, H], or a state.
    """

    params: Any
    kind: jax.Array | None
    embedding_BTJ: jax.Array | None
    adapter: dict[str, dict[str, jax.Array]] | None
    dropout_key: jax.Array | None
    prefix: Past | None
    cache: Past | None


class Shared(NamedTuple):
    """Holds the keys and values of one layer that later layers attend to.

    Attributes:
      keys_values: [K, B, S, H], all that its tokens can attend to but the prefix.
      prefix: keys and values [K, C, H]; None: there is no prefix.
    """

    keys_values: KeysValues
    prefix: KeysValues | None
