"""Shared material of the tests of judging: seeded generators and smooth random pictures."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch.nn import functional


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


@pytest.fixture
def smooth() -> Callable[..., np.ndarray]:
    """`smooth(n, size, seed)`: random pictures (n, 3, size, size) in [0, 1] without hard edges."""

    def make(n: int, size: int = 32, seed: int = 0) -> np.ndarray:
        coarse = torch.from_numpy(np.random.default_rng(seed).random((n, 3, 6, 6)))
        grown = functional.interpolate(coarse, (size, size), mode="bicubic", align_corners=False)
        return grown.clamp(0, 1).numpy()

    return make
