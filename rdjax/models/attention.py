"""Rotary positions, masks, and grouped-query attention on each platform."""

import functools
import math
import re
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from rdjax.models.config import RopeConfig
from rdjax.models.rows import scale_rows
from rdjax.parallel.mesh import device_of, rows_spec

SPLASH_BLOCKS = (128, 256, 384, 512)  # positions a block of splash attention has; the largest that divides is taken
CUDNN_HEAD = 128  # the widest head that cuDNN's flash attention takes on every GPU that has it


def rope_frequencies_H(rope: RopeConfig, head_width: int) -> np.ndarray:
    """Angular frequencies of the rotary embedding, float32 [head_width / 2].

    The llama3 scaling leaves short wavelengths alone, divides the frequency of long ones by `factor`
    and blends between (Llama 3.1 release; `transformers.modeling_rope_utils`).
    """
    frequencies = 1.0 / rope.theta ** (np.arange(0, head_width, 2, dtype=np.float32) / head_width)
    if rope.kind == "linear":
        frequencies = frequencies / rope.factor
    if rope.kind == "llama3":
        periods = rope.original_context * frequencies / (2 * math.pi)
        smooth = (periods - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
        smooth = np.clip(smooth, 0.0, 1.0)
        frequencies = (1 - smooth) * frequencies / rope.factor + smooth * frequencies
    return frequencies.astype(np.float32)


def rope_angles(rope: RopeConfig, head_width: int, positions_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Cosines and signed sines of the rotation at each position, float32 [B, T, 1, H], for `rotate`."""
    angles = positions_BT[..., None, None].astype(jnp.float32) * rope_frequencies_H(rope, head_width)
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    return jnp.concatenate([cos, cos], axis=-1), jnp.concatenate([-sin, sin], axis=-1)


@jax.custom_vjp
def rotate(x_BTNH: jax.Array, cos_BT1H: jax.Array, sin_BT1H: jax.Array) -> jax.Array:
    """Applies the rotary embedding in float32; Hugging Face's layout (halves, not pairs)."""
    x32_BTNH = x_BTNH.astype(jnp.float32)
    turned_BTNH = x32_BTNH * cos_BT1H + jnp.roll(x32_BTNH, x_BTNH.shape[-1] // 2, axis=-1) * sin_BT1H
    return turned_BTNH.astype(x_BTNH.dtype)


# The transpose of a rotation turns back.
rotate.defvjp(
    lambda x_BTNH, cos, sin: (rotate(x_BTNH, cos, sin), (cos, sin)),
    lambda angles, g_BTNH: (rotate(g_BTNH, angles[0], -angles[1]), None, None),
)


class Packing(NamedTuple):
    """Where the tokens of a row belong that holds several sequences behind one another, without padding between.

    All but attention works on the tokens as they lie; attention alone takes the sequences apart, and so is never
    asked about pairs of tokens from two of them.

    Attributes:
      pack_BT: of each token its place in the row's sequences laid out as [E * U]; -1 for padding.
      unpack_BEU: of each place of the E sequences of up to U tokens its token; -1 where the sequence is shorter.
      lead: so many tokens that all sequences of the row begin with stand before them; places count from behind these.
    """

    pack_BT: jax.Array
    unpack_BEU: jax.Array
    lead: int = 0


class Before(NamedTuple):
    """Keys and values that every token may look at: of R rows of tokens each `b`-th part shares one of the `b` rows."""

    k_KbCH: jax.Array
    v_KbCH: jax.Array


def shared_prefix_mask(segments_BT: jax.Array) -> jax.Array:
    """Which token may look at which, bool [B, T, T]: the earlier ones of its own segment and of segment 1, the prefix
    that all of a row share.

    Segment 0 is padding; a padding token sees itself alone, so that its row stays finite.
    """
    T = segments_BT.shape[1]
    causal = jnp.tril(jnp.ones((T, T), bool))
    keys, queries = segments_BT[:, None, :], segments_BT[:, :, None]
    return (causal & ((keys == queries) | (keys == 1)) & (keys > 0)) | jnp.eye(T, dtype=bool)


def causal_attention(
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    v_BTKH: jax.Array,
    before: Before | None,
    packing: Packing | None,
    mesh: Mesh | None,
) -> jax.Array:
    """Attention of every token to what stands before all sequences and to its own past in its sequence, [B, T, N, H].

    Args:
      before: keys and values before all rows; None where the rows have a lead.

    On each platform by its fastest kernel; neither of the accelerators' ever holds the scores of all pairs of tokens.
    """
    H, device = q_BTNH.shape[3], device_of(mesh)
    longest = q_BTNH.shape[1] if packing is None else max(packing.unpack_BEU.shape[2], packing.lead)
    if device.platform == "tpu" and SPLASH_BLOCKS[0] <= longest:
        kernel = splash_attention
    elif has_cudnn_attention(device) and q_BTNH.dtype.itemsize == 2 and H % 8 == 0 and H <= CUDNN_HEAD:
        kernel = cudnn_attention
    else:
        kernel = plain_attention
    own = heads_first(q_BTNH, k_BTKH.shape[2]), heads_first(k_BTKH), heads_first(v_BTKH)
    lead = 0 if packing is None else packing.lead
    led = None
    if lead:
        first = [x_KBTGH[:, :, :lead] for x_KBTGH in own]
        own = [x_KBTGH[:, :, lead:] for x_KBTGH in own]
        led = kernel(*first, None, mesh)
        before = Before(*(x_KBTGH[:, :, :, 0] for x_KBTGH in first[1:]))
    if packing is not None:
        own = [unpack(x_KBTGH, packing.pack_BT, packing.unpack_BEU) for x_KBTGH in own]
    mixed_KBTGH = kernel(*own, before, mesh)
    if packing is not None:
        mixed_KBTGH = pack(mixed_KBTGH, packing.pack_BT, packing.unpack_BEU)
    if led is not None:
        mixed_KBTGH = jnp.concatenate([led, mixed_KBTGH], axis=2)
    return rows_first(mixed_KBTGH)


# Attention works on [K, B, T, G, H]: the G query heads of a key head are further rows of one matrix product, and all
# rows of a batch meet what they share in one.


def heads_first(x_BTNH: jax.Array, kv_heads: int | None = None) -> jax.Array:
    """Queries, keys or values as [K, B, T, G, H]."""
    B, T, N, H = x_BTNH.shape
    return x_BTNH.reshape(B, T, kv_heads or N, -1, H).transpose(2, 0, 1, 3, 4)


def rows_first(x_KBTGH: jax.Array) -> jax.Array:
    """The inverse of `heads_first`, [B, T, N, H]."""
    K, B, T, G, H = x_KBTGH.shape
    return x_KBTGH.transpose(1, 2, 0, 3, 4).reshape(B, T, K * G, H)


# Taking sequences out of their row and putting them back are each other's transpose, for padding shows zeros on both
# sides. Said so, both ways are gathers; the scatter of a gather's own gradient is far slower.


def _take_places(x_KBTGH: jax.Array, at_BP: jax.Array) -> jax.Array:
    """Tokens at the given places of each row; zeros where a place is -1."""
    at_BP = at_BP[None, :, :, None, None]
    return jnp.where(at_BP >= 0, jnp.take_along_axis(x_KBTGH, jnp.maximum(at_BP, 0), axis=2), 0)


@jax.custom_vjp
def unpack(x_KBTGH: jax.Array, pack_BT: jax.Array, unpack_BEU: jax.Array) -> jax.Array:
    """The sequences of packed rows, [K, B * E, U, G, H]."""
    (K, B, _, *heads), (_, E, U) = x_KBTGH.shape, unpack_BEU.shape
    return _take_places(x_KBTGH, unpack_BEU.reshape(B, E * U)).reshape(K, B * E, U, *heads)


@jax.custom_vjp
def pack(x_KRUGH: jax.Array, pack_BT: jax.Array, unpack_BEU: jax.Array) -> jax.Array:
    """Sequences [K, B * E, U, G, H] as the packed rows [K, B, T, G, H] they came from."""
    (K, _, _, *heads), (B, E, U) = x_KRUGH.shape, unpack_BEU.shape
    return _take_places(x_KRUGH.reshape(K, B, E * U, *heads), pack_BT)


unpack.defvjp(lambda x, *places: (unpack(x, *places), places), lambda places, g: (pack(g, *places), None, None))
pack.defvjp(lambda x, *places: (pack(x, *places), places), lambda places, g: (unpack(g, *places), None, None))


def plain_attention(
    q_KBTGH: jax.Array, k_KBTGH: jax.Array, v_KBTGH: jax.Array, before: Before | None, mesh: Mesh | None
) -> jax.Array:
    """`causal_attention` of whole rows, by `attention`."""
    del mesh
    T = q_KBTGH.shape[2]
    return attention(q_KBTGH, k_KBTGH[:, :, :, 0], v_KBTGH[:, :, :, 0], behind_mask(T, T), before)


def behind_mask(T: int, S: int) -> jax.Array:
    """What the last T of S tokens may look at: all before them and themselves, bool [1, T, S]."""
    return jnp.tril(jnp.ones((1, T, S), bool), k=S - T)


def has_cudnn_attention(device: jax.Device) -> bool:
    """Whether the device is an NVIDIA GPU from Ampere on; AMD's have a name for their capability, no number."""
    capability = str(getattr(device, "compute_capability", ""))
    return re.fullmatch(r"\d+\.\d+", capability) is not None and float(capability) >= 8


def _for_kernel(
    q_KBTGH: jax.Array, k_KBTGH: jax.Array, v_KBTGH: jax.Array, before: Before | None
) -> tuple[jax.Array, ...]:
    """[B, T, N, H] and [B, S, K, H] as kernels take them: what stands before stands in every row."""
    if before is not None:
        k_KBTGH, v_KBTGH = (
            jnp.concatenate([_spread(read_KbCH, x_KBTGH).astype(x_KBTGH.dtype), x_KBTGH], axis=2)
            for read_KbCH, x_KBTGH in zip(before, (k_KBTGH, v_KBTGH), strict=True)
        )
    return rows_first(q_KBTGH), rows_first(k_KBTGH), rows_first(v_KBTGH)


def _spread(read_KbCH: jax.Array, x_KBTGH: jax.Array) -> jax.Array:
    """What rows share, for each of them, [K, B, C, 1, H]."""
    return jnp.repeat(read_KbCH, x_KBTGH.shape[1] // read_KbCH.shape[1], axis=1)[:, :, :, None]


def cudnn_attention(
    q_KBTGH: jax.Array, k_KBTGH: jax.Array, v_KBTGH: jax.Array, before: Before | None, mesh: Mesh | None
) -> jax.Array:
    """`plain_attention` by cuDNN's flash attention, for 16-bit numbers, on each device for its own rows and heads."""
    q_BTNH, k_BSKH, v_BSKH = _for_kernel(q_KBTGH, k_KBTGH, v_KBTGH, before)
    T, S = q_BTNH.shape[1], k_BSKH.shape[1]

    def local(q_BTNH, k_BSKH, v_BSKH):
        # Its own causal mask begins at the first key, so tokens behind a prefix bring their mask.
        mask_11TS = None if S == T else behind_mask(T, S)[:, None]
        return jax.nn.dot_product_attention(
            q_BTNH, k_BSKH, v_BSKH, mask=mask_11TS, is_causal=S == T, implementation="cudnn"
        )

    mixed_BTNH = _on_each_device(local, q_BTNH.shape[0], mesh)(q_BTNH, k_BSKH, v_BSKH)
    return heads_first(mixed_BTNH, k_BSKH.shape[2])


def _on_each_device(local: Callable[..., jax.Array], rows: int, mesh: Mesh | None) -> Callable[..., jax.Array]:
    """An attention of whole arrays from one that each device does for its own rows and heads."""
    if mesh is None or mesh.size == 1:
        return local
    spec = P(rows_spec(rows, mesh), None, "tensor")
    # check_vma: a kernel does not say over which axes of the mesh its results vary.
    return jax.shard_map(local, mesh=mesh, in_specs=(spec,) * 3, out_specs=spec, check_vma=False)


def splash_attention(
    q_KBTGH: jax.Array,
    k_KBTGH: jax.Array,
    v_KBTGH: jax.Array,
    before: Before | None,
    mesh: Mesh | None,
    interpret: bool = False,
) -> jax.Array:
    """`plain_attention` by the Pallas kernel for TPU, on each device for its own rows and heads.

    Args:
      interpret: compute as the kernel would, on any platform.
    """
    # No stable module has a flash attention for TPU; this one is kept up by JAX's own authors. Imported here, for it
    # takes a while that the other platforms need not wait.
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel, splash_attention_mask

    q_BTNH, k_BSKH, v_BSKH = _for_kernel(q_KBTGH, k_KBTGH, v_KBTGH, before)
    B, T, N, H = q_BTNH.shape
    S, K = k_BSKH.shape[1:3]
    # Padding at the ends: real tokens never see the keys that are added, and the queries that are added are cut off.
    q_BTNH = _padded(q_BTNH * H**-0.5, -T % SPLASH_BLOCKS[0])
    k_BSKH, v_BSKH = (_padded(x_BSKH, -S % SPLASH_BLOCKS[0]) for x_BSKH in (k_BSKH, v_BSKH))
    shape = q_BTNH.shape[1], k_BSKH.shape[1]
    tensor = 1 if mesh is None else mesh.shape["tensor"]
    q, kv = (max(size for size in SPLASH_BLOCKS if length % size == 0) for length in shape)
    sizes = splash_attention_kernel.BlockSizes(
        block_q=q, block_kv=kv, block_q_dkv=q, block_kv_dkv=kv, block_q_dq=q, block_kv_dq=kv
    )
    # The kernel's tables of blocks are arrays of this trace: made under it, they are no constants of another one.
    mask = splash_attention_mask.MultiHeadMask([splash_attention_mask.CausalMask(shape, S - T)] * (N // tensor))
    kernel = splash_attention_kernel.make_splash_mha_single_device(mask, block_sizes=sizes, interpret=interpret)

    def local(q_BTNH, k_BSKH, v_BSKH):
        heads_first = (x.transpose(0, 2, 1, 3) for x in (q_BTNH, k_BSKH, v_BSKH))
        return jax.vmap(kernel)(*heads_first).transpose(0, 2, 1, 3)

    return heads_first(_on_each_device(local, B, mesh)(q_BTNH, k_BSKH, v_BSKH)[:, :T], K)


def _padded(x_BTKH: jax.Array, more: int) -> jax.Array:
    return jnp.pad(x_BTKH, ((0, 0), (0, more), (0, 0), (0, 0)))


def attention(
    q_KBTGH: jax.Array, k_KBSH: jax.Array, v_KBSH: jax.Array, mask_BTS: jax.Array, before: Before | None = None
) -> jax.Array:
    """Scaled dot-product attention with grouped queries [K, B, T, G, H]; softmax in float32.

    What stands before all rows is read where it lies, never copied into each row, and the softmax is divided by its sum
    after the values are mixed, on H numbers a row instead of S: both for the sake of CPUs.

    Args:
      mask_BTS: which of the S own keys a token may look at (B or 1 rows).
      before: what it may look at besides.
    """
    K, B, T, G, H = q_KBTGH.shape
    q_KBRH = (q_KBTGH * H**-0.5).reshape(K, B, T * G, H)
    # R counts tokens and, within them, query heads.
    bias_BRS = jnp.repeat(jnp.where(mask_BTS, 0.0, -1e30), G, axis=1)
    scores_KBRS = _scores(q_KBRH, k_KBSH) + bias_BRS
    parts = [(scores_KBRS, v_KBSH)]
    if before is not None:
        shared = K, before.k_KbCH.shape[1], -1
        scores_KbrC = _scores(q_KBRH.reshape(*shared, H), before.k_KbCH.astype(q_KBRH.dtype))
        parts.append((scores_KbrC.reshape(K, B, T * G, -1), before.v_KbCH.astype(v_KBSH.dtype)))
    top_KBR1 = functools.reduce(jnp.maximum, (scores.max(axis=-1, keepdims=True) for scores, _ in parts))
    top_KBR1 = jax.lax.stop_gradient(top_KBR1)
    mixed_KBRH, total_KBR1 = 0.0, 0.0
    for scores, v_KbCH in parts:
        weights = jnp.exp(scores - top_KBR1)
        total_KBR1 += weights.sum(axis=-1, keepdims=True)
        weights = weights.astype(v_KbCH.dtype).reshape(K, v_KbCH.shape[1], -1, v_KbCH.shape[2])
        mixed_KBRH += jnp.matmul(weights, v_KbCH, preferred_element_type=jnp.float32).reshape(q_KBRH.shape)
    return scale_rows(mixed_KBRH, 1 / total_KBR1).astype(q_KBTGH.dtype).reshape(q_KBTGH.shape)


def _scores(q_KBRH: jax.Array, k_KBSH: jax.Array) -> jax.Array:
    return jnp.einsum("kbrh,kbsh->kbrs", q_KBRH, k_KBSH, preferred_element_type=jnp.float32)
