"""Rotary positions against complex numbers, and the kinds of scaling against their definitions."""

import jax.numpy as jnp
import numpy as np
import pytest

from rdjax.models.families.registry import decoder_config_from_hf
from rdjax.models.rotary import make_rope, rope_angles, rotate
from tests import tiny


def rotated_as_complex(x_TH, positions_T, frequencies):
    """Rotary embedding as multiplication by exp(i * position * frequency), in float64."""
    half = x_TH.shape[-1] // 2
    z = (x_TH[:, :half] + 1j * x_TH[:, half:]) * np.exp(1j * positions_T[:, None] * frequencies)
    return np.concatenate([z.real, z.imag], -1)


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-3), (jnp.bfloat16, 2**-7)])
def test_rotation_at_far_positions(dtype, tolerance):
    """Holds in bfloat16 too: position 4095 is not a bfloat16 number, nor would its angle be near."""
    positions = np.array([0, 1, 63, 511, 2047, 4095])
    x_TH = jnp.asarray(np.random.RandomState(0).uniform(-1, 1, (len(positions), 16)), dtype)
    angles = rope_angles(make_rope({"rope_theta": 1e4}, 16, 512), jnp.asarray(positions)[None])
    turned = rotate(x_TH[None, :, None], angles)
    assert turned.dtype == dtype
    expected = rotated_as_complex(np.asarray(x_TH, np.float64), positions, 10000.0 ** -(np.arange(8) / 8))
    np.testing.assert_allclose(turned[0, :, 0].astype(jnp.float32), expected, atol=tolerance)


def test_llama3_frequencies_in_three_bands():
    rope = decoder_config_from_hf(tiny.LLAMA3, "here").pattern[0].rope
    plain = 10000.0 ** -(np.arange(8) / 8)
    wavelengths = 2 * np.pi / plain
    scaled = np.array(rope.frequencies)
    short, long = wavelengths < 32 / 4, wavelengths > 32 / 1
    between = ~short & ~long
    assert short.any() and long.any() and between.any()
    np.testing.assert_allclose(scaled[short], plain[short], rtol=1e-6)
    np.testing.assert_allclose(scaled[long], plain[long] / 8, rtol=1e-6)
    smooth = (32 / wavelengths[between] - 1) / (4 - 1)
    np.testing.assert_allclose(scaled[between], plain[between] * (smooth + (1 - smooth) / 8), rtol=1e-6)


def test_a_fraction_of_each_head_is_rotated():
    """The first half as a head of its own, the rest as it was."""
    x_BTNH = jnp.asarray(np.random.RandomState(0).standard_normal((1, 5, 2, 16)), jnp.float32)
    positions_BT = jnp.array([[0, 1, 7, 3, 20]])
    half = rotate(
        x_BTNH, rope_angles(make_rope({"rope_theta": 1e4, "partial_rotary_factor": 0.5}, 16, 512), positions_BT)
    )
    expected = rotate(x_BTNH[..., :8], rope_angles(make_rope({"rope_theta": 1e4}, 8, 512), positions_BT))
    np.testing.assert_array_equal(half[..., :8], expected)
    np.testing.assert_array_equal(half[..., 8:], x_BTNH[..., 8:])
