"""Brain correlation: how well responses predicted from a reconstruction agree with those measured, by ROI.

An encoding model goes from features of pictures to voxels. MindEye2 takes GNet (a convolutional network trained on all
of NSD's subjects, St-Yves et al. 2023) for it; here it is ridge regression from a feature space, one penalty a voxel,
fitted on the subject's training pictures (Naselaris et al. 2011): other figures than GNet's, on any data set.

Legend of shapes: n items, k training pictures, V voxels, d features.
"""

from collections.abc import Mapping

import numpy as np

from fmri2img.errors import InputError
from fmri2img.models.ridge import fit_ridge

BLOCK_VOXELS = 2048
MOST_FEATURES = 8192
WHOLE = "all"


def predict_responses(
    features: np.ndarray, responses: np.ndarray, groups: np.ndarray, made: np.ndarray, *, seed: int = 0
) -> np.ndarray:
    """Responses that an encoding model predicts for pictures with features `made`, (n, V) float32.

    Ridge regression with a penalty for every voxel, chosen by five-fold cross-validation over `groups`; voxels go in
    blocks, so memory is that of one block.

    Args:
        features: (k, d), or more dimensions, which are flattened, of training pictures.
        responses: (k, V), averaged over each picture's repeats.
        groups: (k,) pictures or sessions that are kept together.
        made: (n, d), of the pictures to predict for.

    Raises:
        InputError: more features than an eigenproblem can hold.
    """
    x, wanted = features.reshape(len(features), -1), made.reshape(len(made), -1)
    if min(x.shape) > MOST_FEATURES:
        raise InputError(
            f"{x.shape[1]} features of {len(x)} pictures are too many for an encoding model: at most {MOST_FEATURES} "
            "of either; name a smaller feature space, such as an embedding"
        )
    scale = x.std(0, dtype=np.float64)
    scale[scale < 1e-8 * max(float(scale.max()), 1e-30)] = np.inf
    centre = x.mean(0, dtype=np.float64)
    x, wanted = (x - centre) / scale, (wanted - centre) / scale
    blocks = []
    for start in range(0, responses.shape[1], BLOCK_VOXELS):
        block = responses[:, start : start + BLOCK_VOXELS]
        blocks.append(fit_ridge(x, block, groups=groups, seed=seed).predict(wanted))
    return np.concatenate(blocks, axis=1).astype(np.float32)


def brain_correlation(
    predicted: np.ndarray, measured: np.ndarray, rois: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Pearson correlation of each item's predicted with its measured response over the voxels of each ROI.

    As MindEye2's: a correlation for every picture, whose mean over pictures is the figure. An item whose prediction or
    response does not vary over the ROI scores 0.

    Args:
        predicted: (n, V).
        measured: (n, V), the mean over repeats.
        rois: by name, (V,) bool or indices; each at least 2 voxels.

    Returns:
        By name, (n,) float64 in [-1, 1].

    Raises:
        ValueError: shapes that differ, or an ROI of fewer than 2 voxels.
    """
    if predicted.shape != measured.shape:
        raise ValueError(f"predicted {predicted.shape} and measured {measured.shape} must be one shape.")
    found = {}
    for name, chosen in rois.items():
        x, y = predicted[:, chosen].astype(np.float64), measured[:, chosen].astype(np.float64)
        if x.shape[1] < 2:
            raise ValueError(f"ROI {name!r} has {x.shape[1]} voxels: a correlation needs at least 2.")
        x, y = x - x.mean(1, keepdims=True), y - y.mean(1, keepdims=True)
        length = np.sqrt((x * x).sum(1) * (y * y).sum(1))
        found[name] = np.divide((x * y).sum(1), length, out=np.zeros(len(x)), where=length > 1e-12)
    return found


def mean_response(repeats: np.ndarray, *, padded: bool) -> np.ndarray:
    """The mean response (V,) of a picture's repeats (r, V).

    MindEye2 always averages three and fills up a picture that was seen once or twice by repeating the first (`padded`):
    of two repeats the first counts twice.
    """
    if padded and len(repeats) == 2:
        return np.asarray(repeats[[0, 0, 1]].mean(0, dtype=np.float64))
    return np.asarray(repeats.mean(0, dtype=np.float64))


def rois_of(labels: np.ndarray, *, least: int = 2) -> dict[str, np.ndarray]:
    """ROIs by name as (V,) bool from one label a voxel: `all`, every label, and V1, V2 and V3 of their halves.

    `V1v` and `V1d` are also `V1`. Labels of fewer than `least` voxels are left out.
    """
    found = {WHOLE: np.ones(len(labels), bool)}
    names = list(dict.fromkeys(str(label) for label in labels if str(label)))
    for name in sorted(names):
        found[name] = labels == name
    for area in ("V1", "V2", "V3"):
        halves = [found[half] for half in (f"{area}v", f"{area}d") if half in found]
        if halves and area not in found:
            found[area] = np.logical_or.reduce(halves)
    return {name: mask for name, mask in found.items() if mask.sum() >= least}
