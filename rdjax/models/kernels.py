"""Computes causal attention of whole rows by the fastest kernel of each platform.

Every kernel takes queries, keys and values [K, B, T, G, H] (G is 1 for keys and values) of rows of T tokens and the
prefix before them, or None. Those of accelerators never hold the scores of all pairs of tokens.
"""

import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from rdjax.models.attention import RowPrefix, Scoring, attention, causal_mask, heads_first, rows_first
from rdjax.models.rows import multiply
from rdjax.parallel.mesh import device_of, rows_spec

SPLASH_BLOCKS = (128, 256, 384, 512)  # block sizes of splash attention; the largest that divides the length is used
CUDNN_HEAD = 128  # the widest head that cuDNN's flash attention takes on every GPU that has it

Kernel = Callable[[jax.Array, jax.Array, jax.Array, RowPrefix | None, Scoring, Mesh | None], jax.Array]


def choose_kernel(head_width: int, longest: int, dtype, scoring: Scoring, mesh: Mesh | None) -> Kernel:
    """Returns the fastest kernel of the mesh's devices.

    Args:
      longest: number of tokens of the longest row.
    """
    device = device_of(mesh)
    if device.platform == "tpu" and SPLASH_BLOCKS[0] <= longest:
        return splash_attention
    fits_cudnn = dtype.itemsize == 2 and head_width % 8 == 0 and head_width <= CUDNN_HEAD and scoring.softcap is None
    return cudnn_attention if fits_cudnn and has_cudnn_attention(device) else plain_attention


def plain_attention(
    q_KBTGH: jax.Array,
    k_KBTGH: jax.Array,
    v_KBTGH: jax.Array,
    prefix: RowPrefix | None,
    scoring: Scoring,
    mesh: Mesh | None,
) -> jax.Array:
    """Computes causal attention by `attention`, for every platform."""
    del mesh
    T, C = q_KBTGH.shape[2], 0 if prefix is None else prefix.k_KBCH.shape[2]
    mask_BTS = causal_mask(T, C + T, scoring.window)
    prefix_mask_BTC = None if scoring.window is None else mask_BTS[..., :C]
    k_KBSH, v_KBSH = k_KBTGH[:, :, :, 0], v_KBTGH[:, :, :, 0]
    return attention(q_KBTGH, k_KBSH, v_KBSH, mask_BTS[..., C:], scoring, prefix, prefix_mask_BTC)


def has_cudnn_attention(device: jax.Device) -> bool:
    """Tells whether the device is an NVIDIA GPU from Ampere on; AMD's compute capability is a name, not a number."""
    capability = str(getattr(device, "compute_capability", ""))
    return re.fullmatch(r"\d+\.\d+", capability) is not None and float(capability) >= 8


def _with_prefix(
    q_KBTGH: jax.Array, k_KBTGH: jax.Array, v_KBTGH: jax.Array, prefix: RowPrefix | None
) -> tuple[jax.Array, ...]:
    """Returns queries [B, T, N, H] and keys and values [B, S, K, H] that begin with the prefix in every row."""
    if prefix is not None:
        k_KBTGH, v_KBTGH = (
            jnp.concatenate([_repeat_rows(x_KBCH, x_KBTGH.shape[1]).astype(x_KBTGH.dtype), x_KBTGH], axis=2)
            for x_KBCH, x_KBTGH in zip(prefix, (k_KBTGH, v_KBTGH), strict=True)
        )
    return rows_first(q_KBTGH), rows_first(k_KBTGH), rows_first(v_KBTGH)


def _repeat_rows(x_KBCH: jax.Array, rows: int) -> jax.Array:
    """Repeats the rows of a prefix for all their sequences, [K, rows, C, 1, H]."""
    return jnp.repeat(x_KBCH, rows // x_KBCH.shape[1], axis=1)[:, :, :, None]


def cudnn_attention(
    q_KBTGH: jax.Array,
    k_KBTGH: jax.Array,
    v_KBTGH: jax.Array,
    prefix: RowPrefix | None,
    scoring: Scoring,
    mesh: Mesh | None,
) -> jax.Array:
    """Computes causal attention by cuDNN's flash attention, for 16-bit numbers and without a soft-cap."""
    q_BTNH, k_BSKH, v_BSKH = _with_prefix(q_KBTGH, k_KBTGH, v_KBTGH, prefix)
    T, S = q_BTNH.shape[1], k_BSKH.shape[1]
    plain = S == T and scoring.window is None

    def local(q_BTNH, k_BSKH, v_BSKH):
        # cuDNN's own causal mask begins at the first key, so queries behind a prefix need a mask.
        mask_11TS = None if plain else causal_mask(T, S, scoring.window)[:, None]
        return jax.nn.dot_product_attention(
            q_BTNH, k_BSKH, v_BSKH, mask=mask_11TS, is_causal=plain, scale=scoring.scale, implementation="cudnn"
        )

    mixed_BTNH = _on_each_device(local, q_BTNH.shape[0], mesh)(q_BTNH, k_BSKH, v_BSKH)
    return heads_first(mixed_BTNH, k_BSKH.shape[2])


def _on_each_device(local: Callable[..., jax.Array], rows: int, mesh: Mesh | None) -> Callable[..., jax.Array]:
    """Returns an attention of whole arrays from one that every device computes for its rows and heads."""
    if mesh is None or mesh.size == 1:
        return local
    spec = P(rows_spec(rows, mesh), None, "tensor")
    # check_vma: a kernel does not declare over which axes of the mesh its results vary.
    return jax.shard_map(local, mesh=mesh, in_specs=(spec,) * 3, out_specs=spec, check_vma=False)


def splash_attention(
    q_KBTGH: jax.Array,
    k_KBTGH: jax.Array,
    v_KBTGH: jax.Array,
    prefix: RowPrefix | None,
    scoring: Scoring,
    mesh: Mesh | None,
    interpret: bool = False,
) -> jax.Array:
    """Computes causal attention by the Pallas kernel for TPU.

    Args:
      interpret: run the kernel's steps on any platform.
    """
    q_BTNH, k_BSKH, v_BSKH = _with_prefix(q_KBTGH, k_KBTGH, v_KBTGH, prefix)
    B, T, N, _ = q_BTNH.shape
    S, K = k_BSKH.shape[1:3]
    # Real tokens never attend to the keys that are added, and the queries that are added are cut off.
    q_BTNH = _pad_tokens(multiply(q_BTNH, scoring.scale), -T % SPLASH_BLOCKS[0])
    k_BSKH, v_BSKH = (_pad_tokens(x_BSKH, -S % SPLASH_BLOCKS[0]) for x_BSKH in (k_BSKH, v_BSKH))
    heads = N // (1 if mesh is None else mesh.shape["tensor"])
    kernel = _splash_kernel(heads, (q_BTNH.shape[1], k_BSKH.shape[1]), S - T, scoring, interpret)

    def local(q_BTNH, k_BSKH, v_BSKH):
        per_head = (x.transpose(0, 2, 1, 3) for x in (q_BTNH, k_BSKH, v_BSKH))
        return jax.vmap(kernel)(*per_head).transpose(0, 2, 1, 3)

    return heads_first(_on_each_device(local, B, mesh)(q_BTNH, k_BSKH, v_BSKH)[:, :T], K)


def _splash_kernel(heads: int, shape: tuple[int, int], offset: int, scoring: Scoring, interpret: bool):
    """Returns the kernel for rows of `shape` = (queries, keys), the first query of which is token `offset`."""
    # No stable module has a flash attention for TPU. The import is slow, and other platforms need not wait for it.
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel, splash_attention_mask

    q, kv = (max(size for size in SPLASH_BLOCKS if length % size == 0) for length in shape)
    sizes = splash_attention_kernel.BlockSizes(
        block_q=q, block_kv=kv, block_q_dkv=q, block_kv_dkv=kv, block_q_dq=q, block_kv_dq=kv
    )
    if scoring.window is None:
        mask = splash_attention_mask.CausalMask(shape, offset)
    else:
        mask = splash_attention_mask.LocalMask(shape, (scoring.window - 1, 0), offset)
    # Build the mask inside the trace; cached tables would leak tracers.
    return splash_attention_kernel.make_splash_mha_single_device(
        splash_attention_mask.MultiHeadMask([mask] * heads),
        block_sizes=sizes,
        attn_logits_soft_cap=scoring.softcap,
        interpret=interpret,
    )


def _pad_tokens(x_BTKH: jax.Array, more: int) -> jax.Array:
    """Appends tokens of zeros to every row."""
    return jnp.pad(x_BTKH, ((0, 0), (0, more), (0, 0), (0, 0)))
