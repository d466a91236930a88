"""What a model makes of many pictures, in batches."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from fmri2img.console import Tell
from fmri2img.simulation.modelling.clip import as_pixels

BATCH = 256


@torch.no_grad()
def per_picture(
    pictures: np.ndarray, what: Callable[[Tensor], Tensor], device: torch.device, tell: Tell
) -> np.ndarray:
    """Of pictures uint8 (n, 64, 64, 3), what a function makes of their pixels from -1 to 1: float32 (n, ...)."""
    parts = []
    for start in range(0, len(pictures), BATCH):
        pixels = as_pixels(pictures[start : start + BATCH], device)
        parts.append(what(pixels).float().cpu().numpy())
        tell(min(start + BATCH, len(pictures)), len(pictures))
    return np.concatenate(parts)
