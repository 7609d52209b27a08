"""Computes gated delta nets (Yang et al. 2024, arXiv 2412.06464), as Qwen 3.5 has them in three of four layers.

Each value head keeps a memory, a matrix that maps keys to values. A token lets it fade, reads what it holds for the
token's key, writes a part of the difference to the token's value, and then reads it with the token's query:

    memory <- exp(decay) * memory
    memory <- memory + strength * key (value - key^T memory)^T
    output  = query^T memory

Queries, keys and values come out of a short causal convolution. What a sequence leaves behind is its memory and the
last inputs of the convolution, whatever its length.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from rdjax.models.config import DecoderConfig, DeltaNetConfig
from rdjax.models.linear import Linear, Lora
from rdjax.models.norm import RMSNorm
from rdjax.models.packing import Packing, pack, unpack

CHUNK = 64  # tokens whose updates of the memory are computed at once
EPSILON = 1e-6  # added to the squared norm of queries and keys
EXACT = jax.lax.Precision.HIGHEST  # float32 on accelerators too: errors in the memory would add up


class DeltaState(NamedTuple):
    """Holds what a delta net keeps of the tokens before.

    Attributes:
      conv_BZX: inputs of the convolution at the last Z tokens; zeros where there were none.
      memory_BIHJ: of each value head, float32.
    """

    conv_BZX: jax.Array
    memory_BIHJ: jax.Array


class Inputs(NamedTuple):
    """Holds what a delta net reads of each token: inputs of the convolution, and of the memory's two gates."""

    qkv_BTX: jax.Array
    decay_BTI: jax.Array
    strength_BTI: jax.Array


def empty_state(sizes: DeltaNetConfig, rows: int, dtype) -> DeltaState:
    """Returns the state before the first token."""
    return DeltaState(
        jnp.zeros((rows, sizes.taps - 1, sizes.channels), dtype),
        jnp.zeros((rows, sizes.value_heads, sizes.key_width, sizes.value_width), jnp.float32),
    )


class GatedDeltaNet(nnx.Module):
    """Mixes tokens by a gated delta rule; its parameters are stacked over the layers that have it."""

    def __init__(self, c: DecoderConfig, dtype, int8: bool, rngs: nnx.Rngs):
        layers, sizes = len(c.layers_of("linear_attn")), c.delta_net

        def linear(rows: int, columns: int, int8: bool = int8) -> Linear:
            return Linear((layers, rows, columns), dtype, int8=int8, rngs=rngs)

        self.in_proj_qkv = linear(c.width, sizes.channels)
        self.in_proj_z = linear(c.width, sizes.values)
        # Few columns, on which the decay of everything that is remembered depends: never int8.
        self.in_proj_b = linear(c.width, sizes.value_heads, int8=False)
        self.in_proj_a = linear(c.width, sizes.value_heads, int8=False)
        self.out_proj = linear(sizes.values, c.width)
        shape = (layers, sizes.channels, 1, sizes.taps)
        self.conv_taps = nnx.Param(nnx.initializers.normal(0.1)(rngs.params(), shape, dtype))
        self.dt_bias = nnx.Param(jnp.ones((layers, sizes.value_heads), dtype))
        self.a_log = nnx.Param(jnp.zeros((layers, sizes.value_heads), dtype))
        self.norm = RMSNorm((layers, sizes.value_width), dtype, c.norm_epsilon)
        self.sizes = sizes

    def __call__(
        self,
        x_BTD: jax.Array,
        loras: dict[str, Lora],
        before: DeltaState | None,
        packing: Packing | None,
        padding_B: jax.Array | None,
    ) -> tuple[jax.Array, DeltaState]:
        """Returns the mixed values [B, T, I * J], before the output projection, and the state behind the last token.

        Args:
          before: the state before the rows; one row of it stands for all. None: there is nothing before.
          packing: of rows that hold several sequences; the state that is returned is then of no use.
          padding_B: tokens of padding at the beginning of each row, which change nothing; None: none.
        """
        B = x_BTD.shape[0]
        inputs = self._inputs(x_BTD, loras)
        if before is None:
            before = empty_state(self.sizes, B, x_BTD.dtype)
        before = jax.tree.map(lambda x: jnp.broadcast_to(x, (B, *x.shape[1:])), before)
        if packing is None:
            mixed_BTIJ, state = self._mix(inputs, before, padding_B)
        else:
            mixed_BTIJ, state = self._mix_packed(inputs, before, packing)
        gate_BTIJ = self.in_proj_z(x_BTD, loras.get("in_proj_z")).reshape(mixed_BTIJ.shape)
        gated = self.norm(mixed_BTIJ.astype(x_BTD.dtype)).astype(jnp.float32) * jax.nn.silu(
            gate_BTIJ.astype(jnp.float32)
        )
        return gated.astype(x_BTD.dtype).reshape(*x_BTD.shape[:2], -1), state

    def _inputs(self, x_BTD: jax.Array, loras: dict[str, Lora]) -> Inputs:
        """Returns what the net reads of each token."""
        a_BTI = self.in_proj_a(x_BTD, loras.get("in_proj_a")).astype(jnp.float32)
        b_BTI = self.in_proj_b(x_BTD, loras.get("in_proj_b"))
        step_BTI = jax.nn.softplus(a_BTI + self.dt_bias[...].astype(jnp.float32))
        decay_BTI = -jnp.exp(self.a_log[...].astype(jnp.float32)) * step_BTI
        strength_BTI = jax.nn.sigmoid(b_BTI).astype(jnp.float32)
        return Inputs(self.in_proj_qkv(x_BTD, loras.get("in_proj_qkv")), decay_BTI, strength_BTI)

    def _mix(self, inputs: Inputs, before: DeltaState, padding_B: jax.Array | None) -> tuple[jax.Array, DeltaState]:
        """Mixes rows that are one sequence each; returns [B, T, I, J] in float32, and the state."""
        (B, T, _), sizes = inputs.qkv_BTX.shape, self.sizes
        decay_BTI, strength_BTI = inputs.decay_BTI, inputs.strength_BTI
        if padding_B is not None:
            real_BT1 = (jnp.arange(T) >= padding_B[:, None])[..., None]
            decay_BTI, strength_BTI = decay_BTI * real_BT1, strength_BTI * real_BT1
        qkv_BSX = prepend_inputs(before.conv_BZX, inputs.qkv_BTX, padding_B)
        qkv_BTX = convolve(qkv_BSX, self.conv_taps[...])
        q_BTX, k_BTX, v_BTX = jnp.split(qkv_BTX, [sizes.keys, 2 * sizes.keys], axis=-1)
        keys, values = (B, T, sizes.key_heads, sizes.key_width), (B, T, sizes.value_heads, sizes.value_width)
        q_BTKH, k_BTKH = (normalise(x.reshape(keys)) for x in (q_BTX, k_BTX))
        mixed_BTIJ, memory_BIHJ = delta_rule(
            q_BTKH * sizes.key_width**-0.5, k_BTKH, v_BTX.reshape(values), decay_BTI, strength_BTI, before.memory_BIHJ
        )
        return mixed_BTIJ, DeltaState(qkv_BSX[:, T:], memory_BIHJ)

    def _mix_packed(self, inputs: Inputs, before: DeltaState, packing: Packing) -> tuple[jax.Array, DeltaState]:
        """Mixes rows that hold several sequences, all behind the row's shared prefix if it has one."""
        C, mixed = packing.prefix_length, []
        if C:
            mixed_BCIJ, before = self._mix(Inputs(*(x[:, :C] for x in inputs)), before, None)
            mixed.append(mixed_BCIJ)
            inputs = Inputs(*(x[:, C:] for x in inputs))
        B, E, _ = packing.unpack_BEU.shape

        def apart(x_BTX: jax.Array) -> jax.Array:
            return unpack(x_BTX[None, :, :, None], packing.pack_BT, packing.unpack_BEU)[0, :, :, 0]

        states = jax.tree.map(lambda x: jnp.repeat(x, E, axis=0), before)
        mixed_XUIJ, _ = self._mix(Inputs(*map(apart, inputs)), states, None)
        _, _, I, J = mixed_XUIJ.shape
        together = pack(mixed_XUIJ.reshape(1, *mixed_XUIJ.shape[:2], 1, I * J), packing.pack_BT, packing.unpack_BEU)
        mixed.append(together[0, :, :, 0].reshape(B, -1, I, J))
        return jnp.concatenate(mixed, axis=1), before


def prepend_inputs(before_BZX: jax.Array, x_BTX: jax.Array, padding_B: jax.Array | None) -> jax.Array:
    """Puts the inputs of the tokens before directly in front of each row's first real token, [B, Z + T, X]."""
    both_BSX = jnp.concatenate([before_BZX, x_BTX], axis=1)
    if padding_B is None:
        return both_BSX
    Z = before_BZX.shape[1]
    at_BS = jnp.arange(both_BSX.shape[1]) - padding_B[:, None]
    moved_BSX = jnp.take_along_axis(before_BZX, jnp.clip(at_BS, 0, Z - 1)[..., None], axis=1)
    moved_BSX = jnp.where((at_BS >= 0)[..., None], moved_BSX, 0)
    return jnp.where((at_BS >= Z)[..., None], both_BSX, moved_BSX)


def convolve(x_BSX: jax.Array, kernel_X1S: jax.Array) -> jax.Array:
    """Weights each channel of a token and of the Z tokens before, and applies SiLU; of Z + T tokens it returns T."""
    taps = kernel_X1S.shape[-1]
    T = x_BSX.shape[1] - taps + 1
    return jax.nn.silu(sum(x_BSX[:, tap : tap + T] * kernel_X1S[:, 0, tap] for tap in range(taps)))


def normalise(x_BTKH: jax.Array) -> jax.Array:
    """Returns vectors of length 1, in float32."""
    x_BTKH = x_BTKH.astype(jnp.float32)
    return x_BTKH * jax.lax.rsqrt(jnp.sum(x_BTKH * x_BTKH, axis=-1, keepdims=True) + EPSILON)


def delta_rule(
    q_BTKH: jax.Array,
    k_BTKH: jax.Array,
    v_BTIJ: jax.Array,
    decay_BTI: jax.Array,
    strength_BTI: jax.Array,
    memory_BIHJ: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Applies the gated delta rule to one token after the other, in float32; returns [B, T, I, J] and the memory."""
    groups = v_BTIJ.shape[2] // q_BTKH.shape[2]
    q_BITH, k_BITH = (jnp.repeat(x_BTKH, groups, axis=2).swapaxes(1, 2) for x_BTKH in (q_BTKH, k_BTKH))
    v_BITJ = v_BTIJ.astype(jnp.float32).swapaxes(1, 2)
    decay_BIT, strength_BIT = decay_BTI.swapaxes(1, 2), strength_BTI.swapaxes(1, 2)
    rule = one_token if q_BITH.shape[2] == 1 else by_chunks
    mixed_BITJ, memory_BIHJ = rule(q_BITH, k_BITH, v_BITJ, decay_BIT, strength_BIT, memory_BIHJ)
    return mixed_BITJ.swapaxes(1, 2), memory_BIHJ


def one_token(q_BITH, k_BITH, v_BITJ, decay_BIT, strength_BIT, memory_BIHJ) -> tuple[jax.Array, jax.Array]:
    """Applies the rule to a single token (T = 1), as it is written."""
    k_BIH1, q_BIH1 = k_BITH.swapaxes(2, 3), q_BITH.swapaxes(2, 3)
    memory_BIHJ = memory_BIHJ * jnp.exp(decay_BIT)[..., None]
    known_BI1J = jnp.sum(memory_BIHJ * k_BIH1, axis=2, keepdims=True)
    memory_BIHJ = memory_BIHJ + k_BIH1 * (v_BITJ - known_BI1J) * strength_BIT[..., None]
    return jnp.sum(memory_BIHJ * q_BIH1, axis=2, keepdims=True), memory_BIHJ


def by_chunks(q_BITH, k_BITH, v_BITJ, decay_BIT, strength_BIT, memory_BIHJ) -> tuple[jax.Array, jax.Array]:
    """Applies the rule to chunks of tokens, by matrix products (section 3.3 of arXiv 2412.06464).

    Within a chunk the values that are written depend on those before them: a triangular system, whose solution for a
    memory of zeros and for what the memory holds is found at once. S and T are here tokens of one chunk.
    """
    T = q_BITH.shape[2]
    chunk = min(CHUNK, 1 << (T - 1).bit_length())  # a power of two, for `invert_triangular`
    tokens = -(-T // chunk) * chunk

    def cut(x: jax.Array) -> jax.Array:
        """Returns chunks as the first axis, filled up with tokens that change nothing."""
        padded = jnp.pad(x, [(0, tokens - T) if axis == 2 else (0, 0) for axis in range(x.ndim)])
        return jnp.moveaxis(padded.reshape(*x.shape[:2], tokens // chunk, chunk, *x.shape[3:]), 2, 0)

    past_TS = jnp.tril(jnp.ones((chunk, chunk), bool))

    def read_chunk(memory_BIHJ: jax.Array, one: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        q_BITH, k_BITH, v_BITJ, decay_BIT, strength_BIT = one
        faded_BIT = jnp.cumsum(decay_BIT, axis=-1)  # since the chunk's beginning, as all below in logarithms
        between_BITS = jnp.exp(jnp.where(past_TS, faded_BIT[..., :, None] - faded_BIT[..., None, :], -jnp.inf))
        written_BITH = k_BITH * strength_BIT[..., None]
        system_BITS = jnp.einsum("bith,bish->bits", written_BITH, k_BITH, precision=EXACT) * between_BITS
        known_BITJ = jnp.einsum(
            "bith,bihj->bitj", written_BITH * jnp.exp(faded_BIT)[..., None], memory_BIHJ, precision=EXACT
        )
        new_BITJ = jnp.matmul(
            invert_triangular(system_BITS), v_BITJ * strength_BIT[..., None] - known_BITJ, precision=EXACT
        )
        scores_BITS = jnp.einsum("bith,bish->bits", q_BITH, k_BITH, precision=EXACT) * between_BITS
        mixed_BITJ = jnp.einsum("bits,bisj->bitj", scores_BITS, new_BITJ, precision=EXACT) + jnp.einsum(
            "bith,bihj->bitj", q_BITH * jnp.exp(faded_BIT)[..., None], memory_BIHJ, precision=EXACT
        )
        last_BI1 = faded_BIT[..., -1:]
        memory_BIHJ = memory_BIHJ * jnp.exp(last_BI1)[..., None] + jnp.einsum(
            "bith,bitj->bihj", k_BITH * jnp.exp(last_BI1 - faded_BIT)[..., None], new_BITJ, precision=EXACT
        )
        return memory_BIHJ, mixed_BITJ

    chunks = tuple(map(cut, (q_BITH, k_BITH, v_BITJ, decay_BIT, strength_BIT)))
    memory_BIHJ, mixed = jax.lax.scan(read_chunk, memory_BIHJ, chunks)
    mixed_BITJ = jnp.moveaxis(mixed, 0, 2).reshape(*v_BITJ.shape[:2], tokens, v_BITJ.shape[3])
    return mixed_BITJ[:, :, :T], memory_BIHJ


def invert_triangular(system_BITS: jax.Array) -> jax.Array:
    """Inverts lower triangular matrices of T = S, a power of two, by blocks of twice the size at a time.

    What stands on the diagonal and above it is not read; on it are ones. `jax.scipy.linalg.solve_triangular` does not
    do: on a CPU, two that run at once wait for each other's threads for ever (jax 0.10.2, two cores).
    """
    T = system_BITS.shape[-1]
    inverse = jnp.ones((*system_BITS.shape[:-1], 1, 1), system_BITS.dtype)  # of the T blocks on the diagonal
    size = 1
    while size < T:
        pairs, count = inverse.reshape(*system_BITS.shape[:-2], -1, 2, size, size), T // (2 * size)
        first, second = pairs[..., 0, :, :], pairs[..., 1, :, :]
        blocks = system_BITS.reshape(*system_BITS.shape[:-2], count, 2 * size, count, 2 * size)
        below = jnp.einsum("...nrnc->...nrc", blocks[..., size:, :, :size])
        corner = -jnp.matmul(second, jnp.matmul(below, first, precision=EXACT), precision=EXACT)
        upper, lower = jnp.concatenate([first, jnp.zeros_like(first)], -1), jnp.concatenate([corner, second], -1)
        inverse, size = jnp.concatenate([upper, lower], -2), 2 * size
    return inverse[..., 0, :, :]
