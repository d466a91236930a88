"""How alike two pictures are, pixel by pixel: PixCorr and both historical meanings of SSIM, one score per item.

Pictures are floats in [0, 1] of shape (n, 3, H, W), numpy or torch; uint8 pictures are taken as 255ths. One picture is
compared at a time, in float64, so memory is that of one picture however many there are.

Legend of shapes: n items, H height, W width.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch.nn import functional

Array = np.ndarray | torch.Tensor
Filter = Literal["bilinear", "bicubic"]

GRAY_WEIGHTS = (0.2125, 0.7154, 0.0721)
RADIUS, SIGMA = 5, 1.5
# Rounding alone must not turn a constant into a signal.
FLAT = 1e-10


@dataclass(frozen=True)
class Resizing:
    """To squares of `size` pixels, as one of the published codes does it.

    Attributes:
        size: side in pixels.
        filter: how pixels are interpolated.
        by: `tensor` is torchvision's `Resize` on floats before its version 0.17, which the published environments pin:
            a shrinking picture is sampled, not averaged. `antialias` is the same from 0.17 on. `pillow` is Pillow's
            `resize` of 8-bit pictures: averaged, and rounded to 255ths again. Where a picture grows, `tensor` and
            `antialias` are the same for `bilinear`.
    """

    size: int
    filter: Filter = "bilinear"
    by: Literal["tensor", "antialias", "pillow"] = "antialias"

    def __call__(self, pictures: Array) -> torch.Tensor:
        """Pictures (n, channels, H, W) as float64 (n, channels, size, size)."""
        tensor = floats(pictures)
        if tensor.shape[-2:] == (self.size, self.size):
            return tensor
        if self.by == "pillow":
            return torch.stack([self._pillow(picture) for picture in tensor])
        return functional.interpolate(
            tensor,
            (self.size, self.size),
            mode=self.filter,
            align_corners=False,
            antialias=self.by == "antialias",
        )

    def _pillow(self, picture: torch.Tensor) -> torch.Tensor:
        bytes_ = (picture * 255).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()
        resized = Image.fromarray(bytes_).resize(
            (self.size, self.size), Image.Resampling[self.filter.upper()]
        )
        return torch.from_numpy(np.array(resized)).permute(2, 0, 1).to(torch.float64) / 255


Prepare = Callable[[Array], torch.Tensor]


def resize(pictures: Array, size: int) -> torch.Tensor:
    """Pictures of shape (n, channels, H, W) as float64 (n, channels, size, size), bilinear and averaged."""
    return Resizing(size)(pictures)


def pixcorr(
    reconstructed: Array, seen: Array, *, size: int = 425, prepare: Prepare | None = None
) -> np.ndarray:
    """Pearson correlation over all pixels and colours of each reconstruction with its picture.

    Both are resized to `size` first, as in Brain-Diffuser (Ozcelik and VanRullen 2023) and MindEye (Scotti et
    al. 2023, 2024), or as `prepare` says, which `fmri2img.evaluation.protocols` has for each of them. A constant
    reconstruction scores 0.

    Args:
        reconstructed: (n, 3, H, W).
        seen: (n, 3, H', W'), the picture of each item.
        size: side in pixels at which they are compared.
        prepare: (1, 3, H, W) to float64 of one size, instead of `size`.

    Returns:
        (n,) float64 in [-1, 1].

    Raises:
        ValueError: the two are not pictures, or not equally many.
    """
    same = prepare or Resizing(size)
    scores = []
    for a, b in _pairs(reconstructed, seen):
        x, y = same(a).flatten(), same(b).flatten()
        flat = x.amax() - x.amin() <= FLAT or y.amax() - y.amin() <= FLAT
        x, y = x - x.mean(), y - y.mean()
        scores.append(0.0 if flat else float(x @ y / (x.norm() * y.norm())))
    return np.array(scores, dtype=np.float64).clip(-1.0, 1.0)


def ssim(
    reconstructed: Array,
    seen: Array,
    *,
    size: int = 425,
    prepare: Prepare | None = None,
    linear: bool = False,
    meaning: Literal["2d", "columns"] = "2d",
) -> np.ndarray:
    """Structural similarity of the grey pictures (Wang et al. 2004), as published code computes it.

    All of it calls scikit-image with `gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1` and
    `multichannel=True` on grey pictures. From scikit-image 0.20 on the last word means nothing, and this is the
    two-dimensional SSIM (`2d`; MindEye1 and 2). Before, as in Brain-Diffuser's 0.17.2, it took every column for a
    channel and averaged their one-dimensional SSIMs (`columns`): other figures, on smooth pictures higher ones.

    Args:
        reconstructed: (n, 3, H, W).
        seen: (n, 3, H', W'), the picture of each item.
        size: side in pixels at which they are compared, at least 11 (the window).
        prepare: (1, channels, H, W) to float64 of one size, instead of `size`.
        linear: whether `prepare` is, and treats colours alike, so that grey pictures may pass through it.
        meaning: which of the two.

    Returns:
        (n,) float64 in [-1, 1].

    Raises:
        ValueError: the two are not pictures, or not equally many, or the size is under 11.
    """
    if size < 2 * RADIUS + 1:
        raise ValueError(f"size {size} is under {2 * RADIUS + 1}: the window must fit. Use a larger size.")
    offsets = torch.arange(-RADIUS, RADIUS + 1, dtype=torch.float64)
    window = torch.exp(-0.5 * (offsets / SIGMA) ** 2)
    window /= window.sum()
    axes = (0, 1) if meaning == "2d" else (0,)
    same, linear = (Resizing(size), True) if prepare is None else (prepare, linear)
    scores = []
    for a, b in _pairs(reconstructed, seen):
        # Grey before resizing where that is linear: the order is free, and one channel costs a third of three.
        grey = [same(_gray(part)) if linear else _gray(same(part)) for part in (a, b)]
        scores.append(_ssim(grey[0][0, 0], grey[1][0, 0], window, axes))
    return np.array(scores, dtype=np.float64)


def _ssim(x: torch.Tensor, y: torch.Tensor, window: torch.Tensor, axes: tuple[int, ...]) -> float:
    """The mean over all places where the window fits of two grey pictures (H, W), blurred along some axes."""
    c1, c2 = 0.01**2, 0.03**2
    mx, my, squares, product = (_blur(part, window, axes) for part in (x, y, x * x + y * y, x * y))
    means, cross = mx * mx + my * my, mx * my
    similarity = (2 * cross + c1) * (2 * (product - cross) + c2) / ((means + c1) * (squares - means + c2))
    return float(similarity.mean())


def _blur(part: torch.Tensor, window: torch.Tensor, axes: tuple[int, ...]) -> torch.Tensor:
    """A map (H, W) filtered along some axes, without their border, which scikit-image cuts off as well.

    Shifted sums: ten times faster on a CPU than a convolution in float64.
    """
    taps = len(window)
    for axis in axes:
        length = part.shape[axis] - taps + 1
        total = torch.zeros_like(part.narrow(axis, 0, length))
        for k in range(taps):
            total.add_(part.narrow(axis, k, length), alpha=float(window[k]))
        part = total
    return part


def floats(pictures: Array) -> torch.Tensor:
    """Pictures as float64 in [0, 1]."""
    tensor = torch.as_tensor(pictures)
    return tensor.to(torch.float64) * (1.0 if tensor.is_floating_point() else 1 / 255)


def _gray(pictures: torch.Tensor) -> torch.Tensor:
    """Luminance with scikit-image's weights, (n, 1, H, W)."""
    return (pictures * torch.tensor(GRAY_WEIGHTS, dtype=torch.float64).view(3, 1, 1)).sum(1, keepdim=True)


def _pairs(a: Array, b: Array) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """One picture of both at a time, (1, 3, H, W) float64 in [0, 1]."""
    for name, value in (("reconstructed", a), ("seen", b)):
        if value.ndim != 4 or value.shape[1] != 3:
            raise ValueError(
                f"{name} has shape {tuple(value.shape)}: pictures must be (n, 3, H, W). Transpose them."
            )
    if len(a) != len(b):
        raise ValueError(
            f"{len(a)} reconstructions and {len(b)} pictures: give each item the picture it shows."
        )
    for i in range(len(a)):
        yield floats(a[i : i + 1]), floats(b[i : i + 1])
