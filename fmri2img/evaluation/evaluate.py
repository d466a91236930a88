"""Judges reconstructions against the pictures seen, by every metric that what they hold allows."""

from collections.abc import Mapping

import numpy as np

from fmri2img.errors import InputError
from fmri2img.evaluation.given import Reconstructions, Truth, features_of, places
from fmri2img.evaluation.intervals import estimate, spread_over_seeds
from fmri2img.evaluation.judged import Judged
from fmri2img.evaluation.metrics import published_pools, retrieval, two_way_identification
from fmri2img.evaluation.metrics_pictures import Array, pixcorr, resize, ssim
from fmri2img.evaluation.protocols import protocol
from fmri2img.evaluation.published import Measured, beside
from fmri2img.evaluation.results import Evaluation, EvaluationSettings, Measure


def evaluate(
    reconstructions: Reconstructions,
    truth: Truth,
    settings: EvaluationSettings | None = None,
    *,
    more: Mapping[str, Judged] | None = None,
    missing: Mapping[str, str] | None = None,
    measured: Measured | None = None,
) -> Evaluation:
    """Score reconstructions by every metric they allow, with intervals.

    Pictures give `pixcorr`, `ssim` and `two_way_pixels`; a network that looked at both gives `perceived_<network>`; a
    feature space gives `two_way_<space>`, `image_retrieval_<space>` and `brain_retrieval_<space>`. Identification is
    among all pictures of `truth`; intervals resample pictures, and where every picture has several samples their spread
    stands apart. A protocol changes how pixels are compared, adds `ssim_columns`, and `image_retrieval_raw_<space>` and
    `brain_retrieval_raw_<space>` where its code measures retrieval.

    Args:
        more: metrics that were scored elsewhere, by networks, an encoding model or captions.
        missing: by what a table calls it, what could not be scored and how to get what it needs.
        measured: on what, for published results beside these.

    Raises:
        InputError: nothing to judge, items whose picture is unknown, shapes that differ, or predictions that
            are not finite; the message names them.
    """
    settings = settings or EvaluationSettings()
    index = places(reconstructions, truth)
    judged = _judge_pictures(reconstructions, truth, index, settings)
    judged |= _judge_perceived(reconstructions, truth, index)
    for space in sorted(reconstructions.features):
        judged |= _judge_space(space, reconstructions, truth, index, settings)
    judged |= more or {}
    if not judged:
        raise InputError("the reconstructions hold neither pictures nor features: there is nothing to judge.")
    return Evaluation(
        subject=reconstructions.subject,
        keys=[str(key) for key in reconstructions.keys],
        nsd_ids=[int(value) for value in reconstructions.nsd_ids],
        candidates=len(truth.nsd_ids),
        settings=settings,
        metrics={name: _measure(name, found, reconstructions, settings) for name, found in judged.items()},
        scores={name: [float(value) for value in found.scores] for name, found in judged.items()},
        weights={
            name: [float(value) for value in found.weights]
            for name, found in judged.items()
            if found.weights is not None
        },
        measured=measured,
        missing=dict(missing or {}),
        published=[] if measured is None else beside(measured, list(judged)),
    )


def _measure(name: str, found: Judged, made: Reconstructions, settings: EvaluationSettings) -> Measure:
    """The mean of a metric's scores with its interval over pictures and, apart, its spread over seeds."""
    mean = estimate(
        found.scores,
        made.nsd_ids,
        weights=found.weights,
        seed=settings.seed,
        resamples=settings.resamples,
        level=settings.level,
    )
    return Measure(
        **mean.model_dump(),
        label=found.label,
        description=found.description,
        chance=found.chance,
        higher_is_better=found.higher_is_better,
        headline=_is_headline(name, made) if found.headline is None else found.headline,
        seeds=None if made.seeds is None else spread_over_seeds(found.scores, made.nsd_ids, made.seeds),
    )


def _is_headline(metric: str, made: Reconstructions) -> bool:
    """Where a decoder has directions in some space, that space speaks for its features."""
    of_features = metric.startswith(("two_way_", "image_retrieval_", "brain_retrieval_"))
    if not made.directions or metric == "two_way_pixels" or not of_features:
        return True
    return metric.endswith(tuple(f"_{space}" for space in made.directions))


def _judge_pictures(
    made: Reconstructions, truth: Truth, index: np.ndarray, settings: EvaluationSettings
) -> dict[str, Judged]:
    if made.pictures is None:
        return {}
    if truth.pictures is None:
        raise InputError("reconstructed pictures but no pictures seen: give the pictures of the split.")
    pictures, candidates = (value.transpose(0, 3, 1, 2) for value in (made.pictures, truth.pictures))
    seen = candidates[index]
    side = min(settings.identification_size, *truth.pictures.shape[1:3])
    return _judge_pixels(pictures, seen, settings) | {
        "two_way_pixels": Judged(
            two_way_identification(resize(pictures, side), resize(candidates, side), index),
            "Two-way, pixels",
            f"Share of the {len(candidates) - 1} other pictures that correlate less with the reconstruction "
            f"than the picture seen does, over pixels, at {side} pixels.",
            0.5,
            headline=None if settings.protocol is None else False,
        ),
    }


def _judge_pixels(pictures: Array, seen: Array, settings: EvaluationSettings) -> dict[str, Judged]:
    """PixCorr and SSIM, as a protocol prepares pictures, or at one size."""
    how = None if settings.protocol is None else protocol(settings.protocol)
    prepare = None if how is None else how.prepare_pixels()
    linear = how is not None and how.by == "tensor"
    size = settings.size if how is None else how.size
    where = f"at {size} pixels" + ("" if how is None else f", resized as {how.name} does")
    judged = {
        "pixcorr": Judged(
            pixcorr(pictures, seen, size=size, prepare=prepare),
            "PixCorr",
            f"Pearson correlation over the pixels of picture and reconstruction, {where}.",
            0.0,
        ),
        "ssim": Judged(
            ssim(pictures, seen, size=size, prepare=prepare, linear=linear),
            "SSIM",
            f"Structural similarity of the grey pictures, {where}.",
            None,
            headline=None if how is None else how.ssim == "2d",
        ),
    }
    if how is None:
        return judged
    columns = Judged(
        ssim(pictures, seen, size=size, prepare=prepare, linear=linear, meaning="columns"),
        "SSIM, by columns",
        f"Mean one-dimensional structural similarity of the grey pictures' columns, {where}.",
        None,
        headline=how.ssim == "columns",
    )
    return judged | {"ssim_columns": columns}


def _judge_perceived(made: Reconstructions, truth: Truth, index: np.ndarray) -> dict[str, Judged]:
    """Identification by what a network makes of the pictures (Scotti et al. 2023, section 3.3, among others)."""
    judged = {}
    for network, perceived in sorted(made.perceived.items()):
        if network not in truth.perceived:
            raise InputError(f"{network} looked at the reconstructions but not at the pictures seen.")
        judged[f"perceived_{network}"] = Judged(
            two_way_identification(perceived, truth.perceived[network], index),
            f"Two-way, pictures by {network}",
            f"Share of the {len(truth.nsd_ids) - 1} other pictures whose {network} features correlate less with those "
            "of the reconstruction than those of the picture seen.",
            0.5,
        )
    return judged


def _judge_space(
    space: str, made: Reconstructions, truth: Truth, index: np.ndarray, settings: EvaluationSettings
) -> dict[str, Judged]:
    predicted, candidates = features_of(space, made, truth)
    centre = truth.centres.get(space, np.zeros(candidates.shape[1:]))
    pointed = made.directions.get(space, (predicted - centre).reshape(len(predicted), -1))
    centred = (candidates - centre).reshape(len(candidates), -1)
    directed = space in made.directions
    found = retrieval(pointed, centred, index, pool=settings.pool, draws=settings.draws, seed=settings.seed)
    by_direction = {
        f"two_way_directed_{space}": Judged(
            two_way_identification(pointed, centred, index),
            f"Two-way, {space}, by direction",
            f"Share of the {len(candidates) - 1} other pictures whose features, centred on the training mean, "
            "correlate less with the decoder's retrieval direction than those of the picture seen.",
            0.5,
        )
    }
    return {
        **(by_direction if directed else {}),
        **_judge_published_retrieval(
            space, made.directions.get(space, predicted), candidates, index, settings
        ),
        f"two_way_{space}": Judged(
            two_way_identification(predicted, candidates, index),
            f"Two-way, {space}",
            f"Share of the {len(candidates) - 1} other pictures whose features correlate less with the "
            "prediction than those of the picture seen.",
            0.5,
        ),
        f"image_retrieval_{space}": Judged(
            found.image,
            f"Image retrieval, {space}",
            f"How often the prediction ranks its picture first of {found.image_pool}, by cosine similarity.",
            found.image_chance,
        ),
        f"brain_retrieval_{space}": Judged(
            found.brain,
            f"Brain retrieval, {space}",
            f"How often the picture ranks its prediction first of {found.brain_pool}, by cosine similarity.",
            found.brain_chance,
        ),
    }


def _judge_published_retrieval(
    space: str, predicted: np.ndarray, candidates: np.ndarray, index: np.ndarray, settings: EvaluationSettings
) -> dict[str, Judged]:
    """Retrieval as MindEye2 measures it: features as they are, not centred, in pools that all items share."""
    if settings.protocol is None or protocol(settings.protocol).pools is None:
        return {}
    a, b = predicted.reshape(len(predicted), -1), candidates.reshape(len(candidates), -1)
    n, m = len(a), len(b)
    alone = n == m and len(np.unique(index)) == n
    pools = published_pools(m, pool=settings.pool) if alone else None
    found = retrieval(a, b, index, pool=settings.pool, draws=settings.draws, seed=settings.seed, pools=pools)
    where = (
        "in the published pools"
        if alone
        else "in pools of each item's own, as not every picture has one item"
    )
    what = f"cosine similarity of features as they are, {where}"
    return {
        f"image_retrieval_raw_{space}": Judged(
            found.image,
            f"Image retrieval, {space}, as published",
            f"How often the prediction ranks its picture first of {found.image_pool}, by {what}.",
            found.image_chance,
            weights=found.draws,
        ),
        f"brain_retrieval_raw_{space}": Judged(
            found.brain,
            f"Brain retrieval, {space}, as published",
            f"How often the picture ranks its prediction first of {found.brain_pool}, by {what}.",
            found.brain_chance,
            weights=found.draws,
        ),
    }
