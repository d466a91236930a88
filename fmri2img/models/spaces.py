"""A feature space as a decoder sees it: its shape and how its targets are centred and scaled."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from fmri2img.models.prior import PriorConfig

# Losses that compare directions, by the names that a recipe has for them.
DIRECTED_LOSSES = ("contrastive", "bimixco", "softclip")


@dataclass(frozen=True)
class TargetSpace:
    """What a branch of a decoder predicts.

    `directed` spaces are contrasted: their branch has a projector of its own for retrieval. Spaces with a `prior` have
    a diffusion prior behind the branch. `mean` has the shape of the space; `scale` is one number, the root mean square
    of the centred features over training pictures. One scale for the whole space keeps the geometry that correlations
    and distances are judged in.
    """

    name: str
    shape: tuple[int, ...]
    mean: np.ndarray
    scale: float
    directed: bool = False
    prior: PriorConfig | None = None

    @property
    def size(self) -> int:
        """The number of features of one picture."""
        return prod(self.shape)


def target_space(
    name: str,
    mean: np.ndarray,
    std: np.ndarray,
    *,
    directed: bool = False,
    prior: PriorConfig | None = None,
    factor: float | None = None,
) -> TargetSpace:
    """Make a `TargetSpace` from per-feature statistics, each an array of the space's shape.

    With a `factor`, features are multiplied by it instead, whatever their statistics are.
    """
    if factor is not None:
        return TargetSpace(
            name, tuple(mean.shape), np.zeros(mean.shape, np.float32), 1 / factor, directed, prior
        )
    scale = float(np.sqrt(np.mean(np.square(std, dtype=np.float64))))
    if not np.isfinite(scale) or scale == 0:
        scale = 1.0
    return TargetSpace(name, tuple(mean.shape), np.asarray(mean, np.float32), scale, directed, prior)


def is_directed(space: Mapping[str, Any]) -> bool:
    """Whether a space of a recorded recipe is contrasted; recipes before `losses` said so by a weight."""
    losses = space.get("losses") or {}
    return any(losses.get(kind) is not None for kind in DIRECTED_LOSSES) or bool(space.get("contrastive"))


def prior_of(space: Mapping[str, Any]) -> PriorConfig | None:
    """The prior of a space of a recorded recipe."""
    told = space.get("prior")
    return None if told is None else PriorConfig.model_validate(told)
