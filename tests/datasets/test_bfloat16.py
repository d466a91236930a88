"""bfloat16 without a bfloat16 type rounds as torch does."""

from __future__ import annotations

import numpy as np
import torch

from fmri2img.datasets.bfloat16 import finite, from_bits, to_bits


def test_every_bfloat16_survives() -> None:
    bits = np.arange(1 << 16, dtype=np.uint16)
    bits = bits[(bits & 0x7F80) != 0x7F80]
    assert (to_bits(from_bits(bits)) == bits).all()


def test_rounding_is_torchs() -> None:
    generator = np.random.default_rng(0)
    values = np.exp(generator.normal(0, 20, (50, 100))).astype(np.float32) * generator.choice(
        [-1, 1], (50, 100)
    )
    values = values.astype(np.float32)
    values[0, :4] = [1.00390625, 1.01171875, 0.0, -0.0]  # two exact ties, both zeros
    expected = torch.from_numpy(values).to(torch.bfloat16).float().numpy()
    np.testing.assert_array_equal(from_bits(to_bits(values)), expected)


def test_what_is_too_large_is_told_from_what_is_finite() -> None:
    assert finite(to_bits(np.array([3.3e38, -1.0])))
    assert not finite(to_bits(np.array([3.4e38])))
    assert not finite(np.array([0x7FC0], np.uint16))
