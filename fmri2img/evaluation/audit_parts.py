"""From what is judged to the parts of an audit: controls, metrics by cluster, dimensions, nearness to training."""

from collections.abc import Mapping

import numpy as np

from fmri2img.evaluation.audit import Nearest, dimensions, identified_by_cluster, stand_ins
from fmri2img.evaluation.audit_results import ByCluster, Control, DimensionsKept, NearTraining
from fmri2img.evaluation.given import Reconstructions, Truth
from fmri2img.evaluation.intervals import Estimate, estimate, estimate_difference
from fmri2img.evaluation.metrics_pictures import pixcorr, resize, ssim
from fmri2img.evaluation.results import Evaluation, EvaluationSettings, difference

CHANCE = 0.5
COPY = 0.99
"""Similarity from which on a prediction counts as a training picture's own."""
NEAR = 0.95
"""Similarity from which on a test picture counts as a near-duplicate of a training picture."""


def identifying(result: Evaluation) -> list[str]:
    """The metrics that pick the picture seen out of two, whose chance is one half."""
    return [name for name, measure in result.metrics.items() if measure.chance == CHANCE]


def compared(label: str, description: str, real: Evaluation, control: Evaluation) -> Control:
    """A control beside the decoder; strict intervals hold together, by Bonferroni over the metrics that identify."""
    names = [name for name in real.metrics if name in control.metrics]
    deciding = [name for name in identifying(real) if name in control.metrics]
    level = 1 - (1 - real.settings.level) / max(1, len(deciding))
    return Control(
        label=label,
        description=description,
        metrics={name: control.metrics[name] for name in names},
        differences={name: difference(real, control, name) for name in names},
        strict={name: _strict(real, control, name, level) for name in deciding},
    )


def _strict(real: Evaluation, control: Evaluation, metric: str, level: float) -> Estimate:
    return estimate_difference(
        np.asarray(real.scores[metric]),
        np.asarray(control.scores[metric]),
        np.asarray(real.nsd_ids),
        seed=real.settings.seed,
        resamples=real.settings.resamples,
        level=level,
    )


def metrics_by_cluster(
    made: Reconstructions, truth: Truth, index: np.ndarray, label: np.ndarray, settings: EvaluationSettings
) -> dict[str, ByCluster]:
    """Every metric that can be had within clusters of similar pictures and across them.

    Args:
        index: (n,) place of each item's picture among the candidates.
        label: (m,) cluster of each candidate.
    """
    pairs = _comparable(made, truth, settings)
    level = 1 - (1 - settings.level) / max(1, len(pairs))
    found = {}
    for name, (title, predicted, true) in pairs.items():
        scores = identified_by_cluster(predicted, true, index, label, centre=True)
        found[name] = ByCluster(
            label=title,
            own=None,
            within=averaged(scores.within, made.nsd_ids, settings),
            across=averaged(scores.across, made.nsd_ids, settings),
            strict=averaged(scores.within, made.nsd_ids, settings, level=level),
        )
    return found | _stood_in(made, truth, index, label, settings)


def _comparable(
    made: Reconstructions, truth: Truth, settings: EvaluationSettings
) -> dict[str, tuple[str, np.ndarray, np.ndarray]]:
    """By metric: its label, and what is correlated with what, (n, d) with (m, d)."""
    pairs = {}
    for space, predicted in sorted(made.features.items()):
        true = truth.features[space]
        pairs[f"two_way_{space}"] = (f"Two-way, {space}", predicted, true)
        if space in made.directions:
            centred = (true - truth.centres.get(space, np.float32(0))).reshape(len(true), -1)
            title = f"Two-way, {space}, by direction"
            pairs[f"two_way_directed_{space}"] = (title, made.directions[space], centred)
    for network, perceived in sorted(made.perceived.items()):
        title = f"Two-way, pictures by {network}"
        pairs[f"perceived_{network}"] = (title, perceived, truth.perceived[network])
    if made.pictures is not None and truth.pictures is not None:
        side = min(settings.identification_size, *truth.pictures.shape[1:3])
        small, seen = (
            np.asarray(resize(p.transpose(0, 3, 1, 2), side)) for p in (made.pictures, truth.pictures)
        )
        pairs["two_way_pixels"] = ("Two-way, pixels", small, seen)
    return pairs


def averaged(
    scores: np.ndarray, nsd_ids: np.ndarray, settings: EvaluationSettings, *, level: float | None = None
) -> Estimate | None:
    """The mean of scores (n,) that are there, with its interval; None where fewer than two pictures have one."""
    there = np.isfinite(scores)
    if len(np.unique(nsd_ids[there])) < 2:
        return None
    return estimate(
        scores[there],
        nsd_ids[there],
        seed=settings.seed,
        resamples=settings.resamples,
        level=level or settings.level,
    )


def _stood_in(
    made: Reconstructions, truth: Truth, index: np.ndarray, label: np.ndarray, settings: EvaluationSettings
) -> dict[str, ByCluster]:
    """PixCorr and SSIM with the picture seen, another of its cluster, and one of another cluster in its place."""
    if made.pictures is None or truth.pictures is None:
        return {}
    pictures, candidates = (value.transpose(0, 3, 1, 2) for value in (made.pictures, truth.pictures))
    places = (index, *stand_ins(index, label, settings.seed))
    found = {}
    for name, title, metric in (("pixcorr", "PixCorr", pixcorr), ("ssim", "SSIM", ssim)):
        scores = [metric(pictures, candidates[place], size=settings.size) for place in places]
        gaps = [np.where(place >= 0, score, np.nan) for place, score in zip(places, scores, strict=True)]
        own, within, across = (averaged(score, made.nsd_ids, settings) for score in gaps)
        found[name] = ByCluster(label=title, own=own, within=within, across=across)
    return found


def dimensions_kept(
    made: Reconstructions, truth: Truth, index: np.ndarray, level: float
) -> dict[str, DimensionsKept]:
    """Effective dimensions of every predicted space, over the items judged."""
    found = {}
    for space, predicted in sorted(made.features.items()):
        kept = dimensions(predicted, truth.features[space][index], made.nsd_ids, level=level)
        found[space] = DimensionsKept(**vars(kept))
    return found


def near_training(
    seen: Mapping[str, Nearest],
    predicted: Mapping[str, Nearest],
    nsd_ids: np.ndarray,
    settings: EvaluationSettings,
    *,
    near: float = NEAR,
) -> dict[str, NearTraining]:
    """By space, or `pixels`: shares of items whose picture, and whose prediction, is as good as a training picture.

    Args:
        seen: nearest training pictures of the pictures seen, by item.
        predicted: of what was predicted or made of them.
    """
    found = {}
    for name, training in seen.items():
        duplicates = averaged((training.similarity >= near).astype(np.float64), nsd_ids, settings)
        copies = averaged((predicted[name].similarity >= COPY).astype(np.float64), nsd_ids, settings)
        assert duplicates is not None and copies is not None
        median = float(np.median(training.similarity))
        found[name] = NearTraining(
            duplicates=duplicates, threshold=near, median=median, copies=copies, copy_threshold=COPY
        )
    return found
