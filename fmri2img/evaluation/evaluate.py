"""Judges reconstructions against the pictures seen, by every metric that what they hold allows."""

from dataclasses import dataclass, field

import numpy as np

from fmri2img.errors import InputError
from fmri2img.evaluation.intervals import estimate
from fmri2img.evaluation.metrics import retrieval, two_way_identification
from fmri2img.evaluation.metrics_pictures import pixcorr, resize, ssim
from fmri2img.evaluation.results import Evaluation, EvaluationSettings, Measure

NAMED = 5


@dataclass(frozen=True)
class Reconstructions:
    """What a decoder made of n items, aligned: pictures, predicted features, or both."""

    keys: np.ndarray  # (n,) str, unique
    subject: str
    nsd_ids: np.ndarray  # (n,) int
    pictures: np.ndarray | None = None  # (n, H, W, 3) uint8
    features: dict[str, np.ndarray] = field(default_factory=dict)  # space: (n, *shape) float32
    directions: dict[str, np.ndarray] = field(default_factory=dict)  # space: (n, features), for retrieval
    perceived: dict[str, np.ndarray] = field(
        default_factory=dict
    )  # network: (n, *shape), of the pictures made


@dataclass(frozen=True)
class Truth:
    """The m distinct pictures among which items are identified: all of the split, judged or not."""

    nsd_ids: np.ndarray  # (m,) int, unique
    pictures: np.ndarray | None = None  # (m, H, W, 3) uint8
    features: dict[str, np.ndarray] = field(default_factory=dict)  # space: (m, *shape) float32
    centres: dict[str, np.ndarray] = field(
        default_factory=dict
    )  # space: (*shape), the mean over training pictures
    perceived: dict[str, np.ndarray] = field(
        default_factory=dict
    )  # network: (m, *shape), of the pictures seen


def evaluate(
    reconstructions: Reconstructions, truth: Truth, settings: EvaluationSettings | None = None
) -> Evaluation:
    """Score reconstructions by every metric they allow, with intervals.

    Pictures give `pixcorr`, `ssim` and `two_way_pixels`; a network that looked at both gives `perceived_<network>`; a
    feature space gives `two_way_<space>`, `image_retrieval_<space>` and `brain_retrieval_<space>`. Identification is
    among all pictures of `truth`; intervals resample pictures.

    Raises:
        InputError: nothing to judge, items whose picture is unknown, shapes that differ, or predictions that
            are not finite; the message names them.
    """
    settings = settings or EvaluationSettings()
    index = _index(reconstructions, truth)
    judged = _judge_pictures(reconstructions, truth, index, settings)
    judged |= _judge_perceived(reconstructions, truth, index)
    for space in sorted(reconstructions.features):
        judged |= _judge_space(space, reconstructions, truth, index, settings)
    if not judged:
        raise InputError("the reconstructions hold neither pictures nor features: there is nothing to judge.")
    metrics = {}
    for name, found in judged.items():
        mean = estimate(
            found.scores,
            reconstructions.nsd_ids,
            seed=settings.seed,
            resamples=settings.resamples,
            level=settings.level,
        )
        metrics[name] = Measure(
            **mean.model_dump(),
            label=found.label,
            description=found.description,
            chance=found.chance,
            headline=_is_headline(name, reconstructions),
        )
    return Evaluation(
        subject=reconstructions.subject,
        keys=[str(key) for key in reconstructions.keys],
        nsd_ids=[int(value) for value in reconstructions.nsd_ids],
        candidates=len(truth.nsd_ids),
        settings=settings,
        metrics=metrics,
        scores={name: [float(value) for value in found.scores] for name, found in judged.items()},
    )


def _is_headline(metric: str, made: Reconstructions) -> bool:
    """Where a decoder has directions in some space, that space speaks for its features."""
    of_pictures = metric in ("pixcorr", "ssim", "two_way_pixels") or metric.startswith("perceived_")
    return (
        not made.directions or of_pictures or metric.endswith(tuple(f"_{space}" for space in made.directions))
    )


@dataclass(frozen=True)
class _Judged:
    scores: np.ndarray  # (n,)
    label: str
    description: str
    chance: float | None


def _judge_pictures(
    made: Reconstructions, truth: Truth, index: np.ndarray, settings: EvaluationSettings
) -> dict[str, _Judged]:
    if made.pictures is None:
        return {}
    if truth.pictures is None:
        raise InputError("reconstructed pictures but no pictures seen: give the pictures of the split.")
    pictures, candidates = (value.transpose(0, 3, 1, 2) for value in (made.pictures, truth.pictures))
    seen = candidates[index]
    side = min(settings.identification_size, *truth.pictures.shape[1:3])
    return {
        "pixcorr": _Judged(
            pixcorr(pictures, seen, size=settings.size),
            "PixCorr",
            f"Pearson correlation over the pixels of picture and reconstruction, at {settings.size} pixels.",
            0.0,
        ),
        "ssim": _Judged(
            ssim(pictures, seen, size=settings.size),
            "SSIM",
            f"Structural similarity of the grey pictures, at {settings.size} pixels.",
            None,
        ),
        "two_way_pixels": _Judged(
            two_way_identification(resize(pictures, side), resize(candidates, side), index),
            "Two-way, pixels",
            f"Share of the {len(candidates) - 1} other pictures that correlate less with the reconstruction "
            f"than the picture seen does, over pixels, at {side} pixels.",
            0.5,
        ),
    }


def _judge_perceived(made: Reconstructions, truth: Truth, index: np.ndarray) -> dict[str, _Judged]:
    """Identification by what a network makes of the pictures (Scotti et al. 2023, section 3.3, among others)."""
    judged = {}
    for network, perceived in sorted(made.perceived.items()):
        if network not in truth.perceived:
            raise InputError(f"{network} looked at the reconstructions but not at the pictures seen.")
        judged[f"perceived_{network}"] = _Judged(
            two_way_identification(perceived, truth.perceived[network], index),
            f"Two-way, pictures by {network}",
            f"Share of the {len(truth.nsd_ids) - 1} other pictures whose {network} features correlate less with those "
            "of the reconstruction than those of the picture seen.",
            0.5,
        )
    return judged


def _judge_space(
    space: str, made: Reconstructions, truth: Truth, index: np.ndarray, settings: EvaluationSettings
) -> dict[str, _Judged]:
    predicted, candidates = _features(space, made, truth)
    centre = truth.centres.get(space, np.zeros(candidates.shape[1:]))
    pointed = made.directions.get(space, (predicted - centre).reshape(len(predicted), -1))
    centred = (candidates - centre).reshape(len(candidates), -1)
    directed = space in made.directions
    found = retrieval(pointed, centred, index, pool=settings.pool, draws=settings.draws, seed=settings.seed)
    by_direction = {
        f"two_way_directed_{space}": _Judged(
            two_way_identification(pointed, centred, index),
            f"Two-way, {space}, by direction",
            f"Share of the {len(candidates) - 1} other pictures whose features, centred on the training mean, "
            "correlate less with the decoder's retrieval direction than those of the picture seen.",
            0.5,
        )
    }
    return {
        **(by_direction if directed else {}),
        f"two_way_{space}": _Judged(
            two_way_identification(predicted, candidates, index),
            f"Two-way, {space}",
            f"Share of the {len(candidates) - 1} other pictures whose features correlate less with the "
            "prediction than those of the picture seen.",
            0.5,
        ),
        f"image_retrieval_{space}": _Judged(
            found.image,
            f"Image retrieval, {space}",
            f"How often the prediction ranks its picture first of {found.image_pool}, by cosine similarity.",
            found.image_chance,
        ),
        f"brain_retrieval_{space}": _Judged(
            found.brain,
            f"Brain retrieval, {space}",
            f"How often the picture ranks its prediction first of {found.brain_pool}, by cosine similarity.",
            found.brain_chance,
        ),
    }


def _features(space: str, made: Reconstructions, truth: Truth) -> tuple[np.ndarray, np.ndarray]:
    """Predicted (n, *shape) and true (m, *shape) features of a space, of one shape and finite."""
    if space not in truth.features:
        known = ", ".join(sorted(truth.features)) or "none"
        raise InputError(
            f"feature space {space!r} is predicted but its truth is not given: known are {known}."
        )
    predicted, candidates = made.features[space], truth.features[space]
    if predicted.shape[1:] != candidates.shape[1:]:
        raise InputError(
            f"feature space {space!r} is predicted as {predicted.shape[1:]} and stored as "
            f"{candidates.shape[1:]}: both must have one shape. Use features of the same extractor."
        )
    bad = ~np.isfinite(predicted).reshape(len(predicted), -1).all(1)
    if bad.any():
        raise InputError(
            f"{bad.sum()} of {len(bad)} predictions of {space!r} are not finite ({_some(made.keys[bad])}): "
            "reconstruct again from a checkpoint whose training did not diverge."
        )
    bad = ~np.isfinite(candidates).reshape(len(candidates), -1).all(1)
    if bad.any():
        raise InputError(
            f"true features of {space!r} are not finite for nsd_id {_some(truth.nsd_ids[bad])}: "
            "cache them again."
        )
    return predicted, candidates


def _index(made: Reconstructions, truth: Truth) -> np.ndarray:
    """The place of each item's picture among the candidates, (n,), after checking both sides."""
    n, m = len(made.keys), len(truth.nsd_ids)
    lengths = {"nsd_ids": made.nsd_ids} | ({} if made.pictures is None else {"pictures": made.pictures})
    for name, value in (lengths | made.features | made.directions | made.perceived).items():
        if len(value) != n:
            raise InputError(f"{n} keys but {len(value)} of {name!r}: every item needs one.")
    for name, value in (
        ({} if truth.pictures is None else {"pictures": truth.pictures}) | truth.features | truth.perceived
    ).items():
        if len(value) != m:
            raise InputError(f"{m} candidate pictures but {len(value)} of {name!r}: every one needs its own.")
    if len(np.unique(made.keys)) != n or len(np.unique(truth.nsd_ids)) != m:
        raise InputError(
            "a key or a candidate's nsd_id occurs twice: each must be there once. Remove the copy."
        )
    if len(np.unique(made.nsd_ids)) < 2:
        raise InputError(f"{n} items of fewer than 2 distinct pictures: identification needs at least 2.")
    unknown = ~np.isin(made.nsd_ids, truth.nsd_ids)
    if unknown.any():
        raise InputError(
            f"nsd_id {_some(made.nsd_ids[unknown])} reconstructed but not among the split's {m} pictures: "
            "evaluate on the split that was reconstructed."
        )
    order = np.argsort(truth.nsd_ids)
    return np.asarray(order[np.searchsorted(truth.nsd_ids, made.nsd_ids, sorter=order)])


def _some(values: np.ndarray) -> str:
    """The first few values in words."""
    names = ", ".join(str(value) for value in values[:NAMED])
    return names + (f" and {len(values) - NAMED} more" if len(values) > NAMED else "")
