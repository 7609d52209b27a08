"""Rotary positions, masks, and grouped-query attention on each platform."""

import math
import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from rdjax.mesh import device_of, rows_spec
from rdjax.models.config import RopeConfig

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
    """Cosines and sines of the rotation at each position, float32 [B, T, 1, H / 2]."""
    angles = positions_BT[..., None, None].astype(jnp.float32) * rope_frequencies_H(rope, head_width)
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x_BTNH: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Applies the rotary embedding in float32; Hugging Face's layout (halves, not pairs)."""
    left, right = jnp.split(x_BTNH.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1)
    return turned.astype(x_BTNH.dtype)


def shared_prefix_mask(segments_BT: jax.Array) -> jax.Array:
    """Which token may look at which, bool [B, T, T]: the earlier ones of its own segment and of segment 1, the prefix
    that all of a row share.

    Segment 0 is padding; a padding token sees itself alone, so that its row stays finite.
    """
    T = segments_BT.shape[1]
    causal = jnp.tril(jnp.ones((T, T), bool))
    keys, queries = segments_BT[:, None, :], segments_BT[:, :, None]
    return (causal & ((keys == queries) | (keys == 1)) & (keys > 0)) | jnp.eye(T, dtype=bool)


def causal_attention(q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, mesh: Mesh | None) -> jax.Array:
    """Attention of T tokens to the S - T that stand before all of them and to their own past, [B, T, N, H].

    On each platform by its fastest kernel; neither of the accelerators' ever holds the scores of all pairs of tokens.
    """
    T, H = q_BTNH.shape[1], q_BTNH.shape[3]
    device = device_of(mesh)
    if device.platform == "tpu" and SPLASH_BLOCKS[0] <= T:
        return splash_attention(q_BTNH, k_BSKH, v_BSKH, mesh)
    if has_cudnn_attention(device) and q_BTNH.dtype.itemsize == 2 and H % 8 == 0 and H <= CUDNN_HEAD:
        return cudnn_attention(q_BTNH, k_BSKH, v_BSKH, mesh)
    return attention(q_BTNH, k_BSKH, v_BSKH, behind_mask(T, k_BSKH.shape[1]))


def behind_mask(T: int, S: int) -> jax.Array:
    """What the last T of S tokens may look at: all before them and themselves, bool [1, T, S]."""
    return jnp.tril(jnp.ones((1, T, S), bool), k=S - T)


def has_cudnn_attention(device: jax.Device) -> bool:
    """Whether the device is an NVIDIA GPU from Ampere on; AMD's have a name for their capability, no number."""
    capability = str(getattr(device, "compute_capability", ""))
    return re.fullmatch(r"\d+\.\d+", capability) is not None and float(capability) >= 8


def cudnn_attention(q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, mesh: Mesh | None) -> jax.Array:
    """`causal_attention` by cuDNN's flash attention, for 16-bit numbers, on each device for its own rows and heads."""
    T, S = q_BTNH.shape[1], k_BSKH.shape[1]

    def local(q_BTNH, k_BSKH, v_BSKH):
        # Its own causal mask begins at the first key, so tokens behind a prefix bring their mask.
        mask_11TS = None if S == T else behind_mask(T, S)[:, None]
        return jax.nn.dot_product_attention(
            q_BTNH, k_BSKH, v_BSKH, mask=mask_11TS, is_causal=S == T, implementation="cudnn"
        )

    return _on_each_device(local, q_BTNH.shape[0], mesh)(q_BTNH, k_BSKH, v_BSKH)


def _on_each_device(local: Callable[..., jax.Array], rows: int, mesh: Mesh | None) -> Callable[..., jax.Array]:
    """An attention of whole arrays from one that each device does for its own rows and heads."""
    if mesh is None or mesh.size == 1:
        return local
    spec = P(rows_spec(rows, mesh), None, "tensor")
    # check_vma: a kernel does not say over which axes of the mesh its results vary.
    return jax.shard_map(local, mesh=mesh, in_specs=(spec,) * 3, out_specs=spec, check_vma=False)


def splash_attention(
    q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, mesh: Mesh | None, interpret: bool = False
) -> jax.Array:
    """`causal_attention` by the Pallas kernel for TPU, on each device for its own rows and heads.

    Args:
      interpret: compute as the kernel would, on any platform.
    """
    # No stable module has a flash attention for TPU; this one is kept up by JAX's own authors. Imported here, for it
    # takes a while that the other platforms need not wait.
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel, splash_attention_mask

    B, T, N, H = q_BTNH.shape
    S = k_BSKH.shape[1]
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

    return _on_each_device(local, B, mesh)(q_BTNH, k_BSKH, v_BSKH)[:, :T]


def _padded(x_BTKH: jax.Array, more: int) -> jax.Array:
    return jnp.pad(x_BTKH, ((0, 0), (0, more), (0, 0), (0, 0)))


def attention(q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, mask_BTS: jax.Array) -> jax.Array:
    """Scaled dot-product attention with grouped queries [B, T, N, H]; softmax in float32.

    Two things make it fast on CPU: the query heads that share a key head are further rows of one
    matrix product in (B, K, rows, H) layout, and the softmax is divided by its sum after the values
    are mixed, on H numbers a row instead of S.
    """
    B, T, N, H = q_BTNH.shape
    S, K = k_BSKH.shape[1:3]
    G = N // K
    q_BKGTH = (q_BTNH * H**-0.5).reshape(B, T, K, G, H).transpose(0, 2, 3, 1, 4)
    k_BKSH, v_BKSH = k_BSKH.transpose(0, 2, 1, 3), v_BSKH.transpose(0, 2, 1, 3)
    rows = (B, K, G * T)
    scores = jnp.matmul(q_BKGTH.reshape(*rows, H), k_BKSH.swapaxes(-1, -2), preferred_element_type=jnp.float32)
    bias_BGTS = jnp.broadcast_to(jnp.where(mask_BTS, 0.0, -1e30)[:, None], (B, G, T, S))
    scores = scores + bias_BGTS.reshape(B, 1, G * T, S)
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True)))
    mixed = jnp.matmul(weights.astype(v_BSKH.dtype), v_BKSH, preferred_element_type=jnp.float32)
    mixed = (mixed / weights.sum(axis=-1, keepdims=True)).astype(q_BTNH.dtype)
    return mixed.reshape(B, K, G, T, H).transpose(0, 3, 1, 2, 4).reshape(B, T, N, H)
