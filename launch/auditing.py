"""The audit of a reconstruction: what its scores would be worth without the brain, and from which voxels they come."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fmri2img import checkpoints_schema as schema
from fmri2img.errors import DamageError, InputError
from fmri2img.evaluation import Evaluation, Reconstructions, Truth, estimate, estimate_difference
from fmri2img.evaluation.audit import coordinates
from fmri2img.evaluation.audit_parts import (
    compared,
    dimensions_kept,
    metrics_by_cluster,
    near_training,
)
from fmri2img.evaluation.audit_results import Audit, Control, Region
from fmri2img.evaluation.clusters import cluster, how_many
from fmri2img.evaluation.given import places
from fmri2img.evaluation.metrics import two_way_identification
from fmri2img.evaluation.verdicts import decide
from fmri2img.files import sha256_file
from fmri2img.launch.controls import (
    Change,
    Neighbours,
    TrainingPictures,
    decoded,
    from_mean,
    looked_up,
    neighbours,
    shuffled,
)
from fmri2img.launch.judging import Judging
from fmri2img.launch.made import MANIFEST
from fmri2img.launch.reconstructor import Decoding, Reconstructor

Tell = Callable[[int, int, str], None]
AUDIT = "audit.json"
STEPS = 6
WORDS = {
    "shuffled": (
        "Shuffled responses",
        "every picture decoded from the responses to another: what needs no brain",
    ),
    "mean": (
        "Mean response",
        "every picture decoded from one mean response: what the generator alone scores",
    ),
    "nearest": (
        "Nearest training picture",
        "the training picture nearest to what was predicted, in its place",
    ),
}


def audit(
    made_folder: Path, judging: Judging, result: Evaluation, checkpoint: Path, *, pictures: bool, tell: Tell
) -> Audit:
    """Audit an evaluated reconstruction.

    Args:
        result: its evaluation, whose metrics score the controls too.
        checkpoint: what it was made with.
        pictures: whether the generator draws the controls too, which takes as long as two reconstructions.

    Raises:
        InputError: the checkpoint is another one than it was made with.
    """
    job, data = judging.made.job, judging.dataset.path
    tell(0, STEPS, "loading")
    worker = Reconstructor(job, checkpoint, data, made_folder) if pictures else None
    decoding = worker or Decoding(job, checkpoint, data)
    made = judging.reconstructions if pictures else replace(judging.reconstructions, pictures=None)
    real = result if pictures else judging.score(made)
    tell(1, STEPS, "nearest training pictures")
    index, space = places(made, judging.truth), leading_space(made)
    training = TrainingPictures.of(judging.dataset, training_split(checkpoint))
    near = neighbours(made, judging.truth, index, training)
    stand_ins: dict[str, Callable[[], Reconstructions]] = {
        "shuffled": lambda: shuffled(made, worker, real.settings.seed),
        "mean": lambda: from_mean(made, decoding, worker),
        "nearest": lambda: looked_up(made, judging.truth, near, training, space),
    }
    controls = {}
    for step, (name, stand_in) in enumerate(stand_ins.items(), start=2):
        tell(step, STEPS, WORDS[name][0].lower())
        controls[name] = compared(*WORDS[name], real, judging.score(stand_in()))
    tell(STEPS - 1, STEPS, "regions")
    regions = regions_of(decoding, judging, index, space)
    tell(STEPS, STEPS, "")
    return assembled(
        made,
        judging.truth,
        index,
        real,
        controls=controls,
        near=near,
        space=space,
        regions=regions,
        training_pictures=len(training.place),
        manifest=sha256_file(made_folder / MANIFEST),
    )


def assembled(
    made: Reconstructions,
    truth: Truth,
    index: np.ndarray,
    real: Evaluation,
    *,
    controls: Mapping[str, Control],
    near: Neighbours,
    space: str,
    regions: list[Region],
    training_pictures: int,
    manifest: str,
) -> Audit:
    """Everything of an audit that needs no decoder, and what it decides."""
    settings, count = real.settings, how_many(len(truth.nsd_ids))
    label = cluster(coordinates(truth.features[space]), count, seed=settings.seed).label
    by_cluster = metrics_by_cluster(made, truth, index, label, settings)
    dimensions = dimensions_kept(made, truth, index, settings.level)
    nearness = near_training(near.seen, near.predicted, made.nsd_ids, settings)
    return Audit(
        subject=made.subject,
        manifest=manifest,
        items=len(made.keys),
        pictures=made.pictures is not None,
        training_pictures=training_pictures,
        space=space,
        clusters=count,
        controls=dict(controls),
        by_cluster=by_cluster,
        dimensions=dimensions,
        near_training=nearness,
        regions=regions,
        findings=decide(controls, by_cluster, dimensions, nearness),
    )


def leading_space(made: Reconstructions) -> str:
    """The space by which pictures are grouped and looked up: one that the decoder identifies by, else the first."""
    return min(made.directions or made.features)


def training_split(checkpoint: Path) -> str:
    """The split that a decoder was trained on, by what its checkpoint says; every training picture otherwise."""
    told = json.loads((schema.resolve(checkpoint).path / schema.CONFIG_NAME).read_bytes())
    return str(told.get("split", "train"))


def checkpoint_of(made_folder: Path) -> Path:
    """What a reconstruction was made with, as noted when it was made. Raises InputError where that is gone."""
    path = made_folder / "source.json"
    if not path.is_file():
        raise InputError(f"{made_folder} does not say what it was made with: run the same reconstruct again")
    try:
        checkpoint = Path(json.loads(path.read_bytes())["checkpoint"])
    except (ValueError, KeyError, TypeError) as error:
        raise DamageError(f"{path} is damaged: run the same reconstruct again") from error
    if not checkpoint.is_dir():
        raise InputError(
            f"{made_folder} was made with {checkpoint}, which is gone: an audit needs the decoder"
        )
    return checkpoint


def regions_of(decoding: Decoding, judging: Judging, index: np.ndarray, space: str) -> list[Region]:
    """Identification from each region's voxels alone and without them; empty where voxels have no region.

    Responses are z-scored, so that a voxel set to 0 says nothing. What a region holds and another holds too, neither
    of the two figures gives to one of them: alone counts it for both, without for none.
    """
    made, settings = judging.reconstructions, judging.settings
    table = decoding.dataset.voxel_table(made.subject)
    names = [name for name in dict.fromkeys(table["roi"].tolist()) if name] if "roi" in table else []
    changes: dict[str, Change] = {}
    for name in names:
        inside = np.tile(table["roi"] == name, decoding.dataset.inputs(made.subject) // len(table["roi"]))
        changes[f"alone {name}"] = partial(np.multiply, inside)
        changes[f"without {name}"] = partial(np.multiply, ~inside)
    found = decoded(decoding, changes)
    scores = {
        key: identified(space, features, directions, judging, index)
        for key, (features, directions) in (found | {"": (made.features, made.directions)}).items()
    }
    how: dict[str, Any] = settings.model_dump(include={"seed", "resamples", "level"})
    return [
        Region(
            name=name,
            voxels=int((table["roi"] == name).sum()),
            alone=estimate(scores[f"alone {name}"], made.nsd_ids, **how),
            without=estimate(scores[f"without {name}"], made.nsd_ids, **how),
            drop=estimate_difference(scores[""], scores[f"without {name}"], made.nsd_ids, **how),
        )
        for name in names
    ]


def identified(
    space: str,
    features: Mapping[str, np.ndarray],
    directions: Mapping[str, np.ndarray],
    judging: Judging,
    index: np.ndarray,
) -> np.ndarray:
    """Two-way identification (n,) by a space: by direction where the decoder has one."""
    true = judging.truth.features[space]
    if space not in directions:
        return two_way_identification(features[space], true, index)
    centred = (true - judging.truth.centres[space]).reshape(len(true), -1)
    return two_way_identification(directions[space], centred, index)
