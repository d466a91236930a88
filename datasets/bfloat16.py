"""bfloat16 values in numpy, which has no such type: the upper 16 bits of a float32, kept as uint16.

A column of dtype `bfloat16` holds `.npy` members of uint16 with these bits.
"""

from __future__ import annotations

import numpy as np

EXPONENT = 0x7F80


def to_bits(values: np.ndarray) -> np.ndarray:
    """uint16 bits of the bfloat16 nearest to each finite value, ties to even; what is too large is infinite."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    out: np.ndarray = (rounded >> np.uint32(16)).astype(np.uint16)
    return out


def from_bits(bits: np.ndarray) -> np.ndarray:
    """The float32 value of each bfloat16, exactly."""
    wide = np.ascontiguousarray(bits, np.uint16).astype(np.uint32) << np.uint32(16)
    out: np.ndarray = wide.view(np.float32)
    return out


def finite(bits: np.ndarray) -> bool:
    """Whether none is infinite or NaN."""
    return bool(((bits & EXPONENT) != EXPONENT).all())
