"""What judging gives: metrics with intervals, the score of every item, and a JSON file of both."""

from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fmri2img.errors import DamageError, InputError
from fmri2img.evaluation.intervals import Estimate, SeedSpread, estimate_difference
from fmri2img.evaluation.protocols import ProtocolName
from fmri2img.evaluation.published import Beside, Measured
from fmri2img.files import write_json


class EvaluationSettings(BaseModel):
    """How to judge. The defaults are the field's (MindEye 1 and 2)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: int = Field(default=425, ge=11, description="side in pixels at which PixCorr and SSIM compare")
    identification_size: int = Field(
        default=64, ge=1, description="largest side for identification by pixels"
    )
    pool: int = Field(default=300, ge=2, description="pictures in a retrieval pool")
    draws: int = Field(default=30, ge=1, description="random retrieval pools per item")
    seed: int = Field(default=0, ge=0, description="of retrieval pools and resampling")
    resamples: int = Field(default=2000, ge=1, description="bootstrap samples of an interval")
    level: float = Field(default=0.95, gt=0, lt=1, description="coverage of an interval")
    networks: list[str] = Field(
        default=[],
        description="CLIP models, by name or folder, that look at the pictures made and seen and identify them",
    )
    protocol: ProtocolName | None = Field(
        default=None,
        description="measure pictures as this published code does, with its networks",
    )
    brain: str | None = Field(
        default=None, description="feature space from which responses are predicted for brain correlation"
    )


class Measure(Estimate):
    """One metric's mean and interval, and what a reader needs to judge it."""

    label: str
    description: str
    chance: float | None = None
    higher_is_better: bool = True
    headline: bool = True
    seeds: SeedSpread | None = None


class Evaluation(BaseModel):
    """The result: averages with intervals, and the scores of every item in the order of `keys`.

    Since version 2: `weights` of the items of a metric whose items do not count the same; `measured`, on what;
    `missing`, what could not be measured and how to get what it needs; `published`, rows of the field's tables beside
    these, each with whether it is comparable.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    schema_version: Literal[1, 2] = 2
    subject: str
    keys: list[str]
    nsd_ids: list[int]
    candidates: int
    settings: EvaluationSettings
    metrics: dict[str, Measure]
    scores: dict[str, list[float]]
    weights: dict[str, list[float]] = {}
    measured: Measured | None = None
    missing: dict[str, str] = {}
    published: list[Beside] = []

    def order(self, metric: str) -> np.ndarray:
        """Items from the best to the worst by a metric, as (n,) indices; equal scores keep their order."""
        if metric not in self.scores:
            raise InputError(f"no metric {metric!r} was computed: use one of {', '.join(self.scores)}.")
        sign = -1 if self.metrics[metric].higher_is_better else 1
        return np.argsort(sign * np.asarray(self.scores[metric]), kind="stable")

    def headlines(self) -> list[str]:
        """The metrics of a short table: retrieval and identification, then pictures, brain and captions."""
        kinds = (
            *("image_retrieval_", "brain_retrieval_", "two_way_", "perceived_", "pixcorr", "ssim"),
            *("alexnet2", "alexnet5", "inception", "clip", "effnet", "swav", "brain_correlation_"),
            *("meteor", "rouge_1", "rouge_l", "sentence_similarity"),
        )
        shown = sorted(name for name, measure in self.metrics.items() if measure.headline)
        return [name for kind in kinds for name in shown if name.startswith(kind)]

    def write(self, path: Path) -> None:
        """Write as JSON, whole or not at all."""
        write_json(path, self.model_dump(mode="json"))

    @classmethod
    def read(cls, path: Path) -> "Evaluation":
        """Read what `write` wrote. InputError: no such file. DamageError: not an evaluation."""
        if not path.is_file():
            raise InputError(f"no evaluation at {path}: run `fmri2img evaluate` first or give another path.")
        try:
            return cls.model_validate_json(path.read_bytes())
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "the whole file"
            raise DamageError(
                f"{path} is not an evaluation: {where}: {first['msg']}. Evaluate again."
            ) from error


def difference(a: Evaluation, b: Evaluation, metric: str) -> Estimate:
    """How far `a` is above `b` on a metric, paired item by item, with its interval.

    Raises:
        InputError: the two judge different items, or one lacks the metric.
    """
    if metric not in a.scores or metric not in b.scores:
        shared = ", ".join(name for name in a.scores if name in b.scores)
        raise InputError(f"metric {metric!r} is not in both evaluations: use one of {shared}.")
    place = {key: i for i, key in enumerate(b.keys)}
    if set(a.keys) != set(place) or len(a.keys) != len(b.keys):
        raise InputError(
            f"evaluations of {len(a.keys)} and {len(b.keys)} items: a paired difference needs the same."
        )
    other = np.asarray(b.scores[metric])[[place[key] for key in a.keys]]
    return estimate_difference(
        np.asarray(a.scores[metric]),
        other,
        np.asarray(a.nsd_ids),
        weights=np.asarray(a.weights[metric]) if metric in a.weights else None,
        seed=a.settings.seed,
        resamples=a.settings.resamples,
        level=a.settings.level,
    )
