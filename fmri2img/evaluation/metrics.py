"""The field's measures of reconstructions, one score per item: PixCorr, SSIM, identification, retrieval.

Pure functions on arrays. Averaging, and the interval around an average, belong to
`fmri2img.evaluation.intervals`. Pictures are floats in [0, 1] of shape (n, 3, H, W), numpy or torch; uint8
pictures are taken as 255ths. All arithmetic is float64, in chunks that bound memory.

Legend of shapes: n items, m candidates (distinct pictures), d features, H height, W width.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

Array = np.ndarray | torch.Tensor

CHUNK_PICTURES = 8
CHUNK_FEATURES = 8192
GRAY_WEIGHTS = (0.2125, 0.7154, 0.0721)
# Rounding alone must neither turn a constant into a signal nor break a tie.
FLAT = 1e-10
TIE = 1e-12


def resize(pictures: Array, size: int) -> torch.Tensor:
    """Pictures of shape (n, channels, H, W) as float64 (n, channels, size, size), bilinear.

    Like torchvision's `Resize` on tensors with its default `antialias=True`: a shrinking picture is averaged,
    a growing one (the usual case at 425) is interpolated, where the flag has no effect.
    """
    tensor = _floats(pictures)
    if tensor.shape[-2:] == (size, size):
        return tensor
    return functional.interpolate(tensor, (size, size), mode="bilinear", align_corners=False, antialias=True)


def pixcorr(reconstructed: Array, seen: Array, *, size: int = 425) -> np.ndarray:
    """Pearson correlation over all pixels and colours of each reconstruction with its picture.

    Both are resized to `size` first, as in Brain-Diffuser (Ozcelik and VanRullen 2023) and MindEye (Scotti et
    al. 2023, 2024). MindEye2 shrinks or grows pictures to 256 pixels before that; we do not. A constant
    reconstruction scores 0.

    Args:
        reconstructed: (n, 3, H, W).
        seen: (n, 3, H', W'), the picture of each item.
        size: side in pixels at which they are compared.

    Returns:
        (n,) float64 in [-1, 1].

    Raises:
        ValueError: the two are not pictures, or not equally many.
    """
    scores = []
    for a, b in _chunks(reconstructed, seen):
        x, y = resize(a, size).flatten(1), resize(b, size).flatten(1)
        flat = (x.amax(1) - x.amin(1) <= FLAT) | (y.amax(1) - y.amin(1) <= FLAT)
        x, y = x - x.mean(1, keepdim=True), y - y.mean(1, keepdim=True)
        r = torch.linalg.vecdot(x, y) / (x.norm(dim=1) * y.norm(dim=1))
        scores.append(torch.where(flat, 0.0, r))
    return _joined(scores).clip(-1.0, 1.0)


def ssim(reconstructed: Array, seen: Array, *, size: int = 425) -> np.ndarray:
    """Structural similarity of the grey pictures (Wang et al. 2004), as MindEye2 computes it.

    Equal to scikit-image 0.20 and later: `structural_similarity(rgb2gray(a), rgb2gray(b), sigma=1.5,
    gaussian_weights=True, use_sample_covariance=False, data_range=1)`. Published code also passes
    `multichannel=True`, which before 0.20 averaged one-dimensional SSIMs of columns and gave higher figures;
    this is the two-dimensional meaning.

    Args:
        reconstructed: (n, 3, H, W).
        seen: (n, 3, H', W'), the picture of each item.
        size: side in pixels at which they are compared, at least 11 (the window).

    Returns:
        (n,) float64 in [-1, 1].

    Raises:
        ValueError: the two are not pictures, or not equally many, or the size is under 11.
    """
    radius, sigma = 5, 1.5
    if size < 2 * radius + 1:
        raise ValueError(f"size {size} is under {2 * radius + 1}: the window must fit. Use a larger size.")
    offsets = torch.arange(-radius, radius + 1, dtype=torch.float64)
    window = torch.exp(-0.5 * (offsets / sigma) ** 2)
    window /= window.sum()
    c1, c2 = 0.01**2, 0.03**2
    scores = []
    # Grey before resizing: both are linear, so the order is free, and one channel costs a third of three.
    for a, b in _chunks(reconstructed, seen):
        x, y = resize(_gray(a), size), resize(_gray(b), size)
        mx, my, squares, product = (_blur(part[:, 0], window) for part in (x, y, x * x + y * y, x * y))
        means = mx * mx + my * my
        similarity = (
            (2 * mx * my + c1) * (2 * (product - mx * my) + c2) / ((means + c1) * (squares - means + c2))
        )
        scores.append(similarity.mean((1, 2)))
    return _joined(scores)


def two_way_identification(
    predicted: Array, candidates: Array, truth: np.ndarray | None = None
) -> np.ndarray:
    """The share of wrong candidates that resemble the prediction less than the true one does.

    Resemblance is the Pearson correlation over features; a tie counts one half, so chance is one half. The
    field's `r = corrcoef(reals, preds)[:n, n:]; mean(r < diag(r))`, with ties and repeated pictures settled.

    Args:
        predicted: (n, d), or more dimensions, which are flattened.
        candidates: (m, d), the true features of m distinct pictures.
        truth: (n,) index into `candidates` of each item's picture; without it, m = n and item i is picture i.

    Returns:
        (n,) float64 in [0, 1].

    Raises:
        ValueError: shapes or indices do not fit, or there is only one candidate.
    """
    index = _truth(predicted, candidates, truth)
    r = _similarities(predicted, candidates, centre=True)
    correct = np.take_along_axis(r, index[:, None], axis=1)
    below = (r < correct - TIE).sum(1)
    tied = (np.abs(r - correct) <= TIE).sum(1) - 1
    return np.asarray((below + 0.5 * tied) / (r.shape[1] - 1))


@dataclass(frozen=True)
class Retrieval:
    """Top-1 retrieval: `image` and `brain` are (n,), the share of draws in which an item was found."""

    image: np.ndarray
    brain: np.ndarray
    image_pool: int
    brain_pool: int

    @property
    def image_chance(self) -> float:
        return 1 / self.image_pool

    @property
    def brain_chance(self) -> float:
        return 1 / self.brain_pool


def retrieval(
    predicted: Array,
    candidates: Array,
    truth: np.ndarray | None = None,
    *,
    pool: int = 300,
    draws: int = 30,
    seed: int = 0,
) -> Retrieval:
    """Top-1 retrieval by cosine similarity in random pools around the true one (Lin et al. 2022, MindEye).

    Image retrieval: a prediction picks its picture out of a pool of pictures. Brain retrieval: a picture
    picks its prediction out of a pool of predictions, the others being of other pictures. A tie for first
    place counts one over the number tied. (Several published codes carry the two names swapped.)

    Args:
        predicted: (n, d), or more dimensions, which are flattened.
        candidates: (m, d), the true features of m distinct pictures.
        truth: (n,) index into `candidates` of each item's picture; without it, m = n and item i is picture i.
        pool: pictures in a pool, the true one among them; fewer where there are fewer.
        draws: random pools per item.
        seed: of the pools.

    Returns:
        A `Retrieval` with the scores and the sizes of pool used.

    Raises:
        ValueError: shapes or indices do not fit, or there are not two distinct pictures on each side.
    """
    index = _truth(predicted, candidates, truth)
    similarity = _similarities(predicted, candidates, centre=False)
    rng = np.random.default_rng(seed)
    image_pool = min(pool, similarity.shape[1])
    brain_pool = min(pool, len(np.unique(index)))
    if min(image_pool, brain_pool) < 2 or draws < 1:
        raise ValueError(
            f"{brain_pool} distinct pictures in a pool and {draws} draws: retrieval needs at least 2 and 1."
        )
    correct = np.take_along_axis(similarity, index[:, None], axis=1)
    wrong = np.arange(similarity.shape[1])[None] != index[:, None]
    image = _found(similarity, correct, wrong, image_pool, draws, rng)
    wrong = index[None] != index[:, None]
    brain = _found(similarity.T[index], correct, wrong, brain_pool, draws, rng)
    return Retrieval(image, brain, image_pool, brain_pool)


def _found(
    similarity: np.ndarray,
    correct: np.ndarray,
    wrong: np.ndarray,
    pool: int,
    draws: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """Share of draws in which the true one wins; similarity and wrong (n, c), correct (n, 1).

    How many of the better and the tied land in a random pool follows the hypergeometric law, so drawing the
    counts is drawing the pools.
    """
    better = (wrong & (similarity > correct + TIE)).sum(1)
    tied = (wrong & (np.abs(similarity - correct) <= TIE)).sum(1)
    rest = wrong.sum(1) - better
    shape = (draws, len(better))
    ahead = rng.hypergeometric(better, rest, pool - 1, size=shape)
    # The second draw matters only where nobody is ahead: then the whole pool comes from the rest.
    beside = rng.hypergeometric(tied, rest - tied, np.minimum(pool - 1, rest), size=shape)
    return np.asarray(np.where(ahead == 0, 1 / (1 + beside), 0.0).mean(0))


def _similarities(a: Array, b: Array, *, centre: bool) -> np.ndarray:
    """Cosine similarity of every row of a (n, d) with every row of b (m, d); Pearson if centred. (n, m).

    A row without variance (or, uncentred, of zeros) has similarity 0 with all. Features are read in blocks of
    columns, so that token features of 10^5 columns need no float64 copy.
    """
    x, y = (torch.as_tensor(value).flatten(1) for value in (a, b))
    means = [t.mean(1, keepdim=True, dtype=torch.float64) if centre else 0.0 for t in (x, y)]
    product = torch.zeros(len(x), len(y), dtype=torch.float64)
    squares = [torch.zeros(len(t), dtype=torch.float64) for t in (x, y)]
    raw = [torch.zeros(len(t), dtype=torch.float64) for t in (x, y)]
    for start in range(0, x.shape[1], CHUNK_FEATURES):
        blocks = []
        for i, t in enumerate((x, y)):
            block = t[:, start : start + CHUNK_FEATURES].to(torch.float64)
            raw[i] += (block * block).sum(1)
            block = block - means[i]
            squares[i] += (block * block).sum(1)
            blocks.append(block)
        product += blocks[0] @ blocks[1].T
    inverse = [torch.where(s > FLAT**2 * r, s, torch.inf).rsqrt() for s, r in zip(squares, raw, strict=True)]
    return (product * inverse[0][:, None] * inverse[1][None]).numpy()


def _truth(predicted: Array, candidates: Array, truth: np.ndarray | None) -> np.ndarray:
    """The index of each item's picture, after checking that the three arguments fit together."""
    n, m = len(predicted), len(candidates)
    index = np.arange(n) if truth is None else np.asarray(truth)
    if tuple(predicted.shape[1:]) != tuple(candidates.shape[1:]) or index.shape != (n,) or m < 2 or n < 1:
        raise ValueError(
            f"predicted {tuple(predicted.shape)}, candidates {tuple(candidates.shape)} and truth "
            f"{index.shape} do not fit: they must be (n, d), (m, d) and (n,) with m at least 2."
        )
    if index.min() < 0 or index.max() >= m:
        raise ValueError(f"truth runs from {index.min()} to {index.max()}: indices must lie in 0 to {m - 1}.")
    return index


def _chunks(a: Array, b: Array) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """A few pictures of both at a time, as float64 in [0, 1]."""
    for name, value in (("reconstructed", a), ("seen", b)):
        if value.ndim != 4 or value.shape[1] != 3:
            raise ValueError(
                f"{name} has shape {tuple(value.shape)}: pictures must be (n, 3, H, W). Transpose them."
            )
    if len(a) != len(b):
        raise ValueError(
            f"{len(a)} reconstructions and {len(b)} pictures: give each item the picture it shows."
        )
    for start in range(0, len(a), CHUNK_PICTURES):
        part = slice(start, start + CHUNK_PICTURES)
        yield _floats(a[part]), _floats(b[part])


def _floats(pictures: Array) -> torch.Tensor:
    tensor = torch.as_tensor(pictures)
    return tensor.to(torch.float64) * (1.0 if tensor.is_floating_point() else 1 / 255)


def _gray(pictures: torch.Tensor) -> torch.Tensor:
    """Luminance with scikit-image's weights, (n, 1, H, W)."""
    return (pictures * torch.tensor(GRAY_WEIGHTS, dtype=torch.float64).view(3, 1, 1)).sum(1, keepdim=True)


def _blur(maps: torch.Tensor, window: torch.Tensor) -> torch.Tensor:
    """Maps (n, H, W) filtered along both axes, without the border, which scikit-image cuts off as well.

    Shifted sums, one map at a time: ten times faster on a CPU than a float64 convolution.
    """
    taps = len(window)
    done = []
    for part in maps:
        for axis in (0, 1):
            length = part.shape[axis] - taps + 1
            total = torch.zeros_like(part.narrow(axis, 0, length))
            for k in range(taps):
                total.add_(part.narrow(axis, k, length), alpha=float(window[k]))
            part = total
        done.append(part)
    return torch.stack(done)


def _joined(scores: list[torch.Tensor]) -> np.ndarray:
    return torch.cat(scores).numpy() if scores else np.zeros(0)
