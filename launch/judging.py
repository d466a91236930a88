"""From a finished reconstruction to scores: read what was made and what was seen, and evaluate it."""

from pathlib import Path
from typing import Literal

import numpy as np

from fmri2img.datasets import Dataset, Samples
from fmri2img.datasets.samples import concatenate
from fmri2img.errors import InputError
from fmri2img.evaluation import Evaluation, EvaluationSettings, Reconstructions, Truth, evaluate
from fmri2img.features.extractors import ClipImage
from fmri2img.launch.made import Made, read_made

Candidates = Literal["split", "subject"]


def judge(
    made_folder: Path, data: Path, settings: EvaluationSettings, *, candidates: Candidates = "split"
) -> Evaluation:
    """Evaluate a reconstruction against the pictures of its split, or against all that the subject saw.

    Two-way identification compares predicted with true features as they are, as the field does; retrieval, and two-way
    identification by direction, compare the decoder's retrieval directions with features centred on the training mean.
    Raises InputError for data it was not made from.
    """
    made, dataset = read_made(made_folder), Dataset.open(data)
    if made.job.fingerprint != dataset.fingerprint:
        raise InputError(
            f"{made_folder} was made from other data than {data}: pass the data set it was made from"
        )
    if len(made.job.subjects) != 1:
        raise InputError(
            f"{made_folder} holds {', '.join(made.job.subjects)}: evaluate one subject at a time, "
            "reconstruct with --subject"
        )
    splits = (made.job.split,) if candidates == "split" else tuple(dataset.splits)
    tables = [dataset.samples(made.job.subjects[0], split) for split in splits]
    reconstructions, truth = _made(made), _truth(dataset, tables, made)
    for name in settings.networks:
        network = ClipImage(model=name).load()
        reconstructions.perceived[name] = network(list(made.pictures))
        assert truth.pictures is not None
        truth.perceived[name] = network(list(truth.pictures))
    return evaluate(reconstructions, truth, settings)


def _made(made: Made) -> Reconstructions:
    return Reconstructions(
        keys=np.array([item["key"] for item in made.items]),
        subject=made.job.subjects[0],
        nsd_ids=np.array([item["nsd_id"] for item in made.items]),
        pictures=made.pictures,
        features=made.features,
        directions=made.retrieval,
    )


def _truth(dataset: Dataset, tables: list[Samples], made: Made) -> Truth:
    table = concatenate(tables[0].subject, tables)
    rows = np.unique(table.nsd_id, return_index=True)[1]
    features = {name: dataset.read_features(table, rows, name) for name in made.job.spaces}
    centres = {name: dataset.feature_statistics(name)[0] for name in made.job.spaces}
    pictures = seen_pictures(dataset, table, rows, made.pictures.shape[1])
    return Truth(nsd_ids=table.nsd_id[rows], pictures=pictures, features=features, centres=centres)


def seen_pictures(dataset: Dataset, table: Samples, rows: np.ndarray, size: int) -> np.ndarray:
    """Pictures of these rows, (n, size, size, 3) uint8, enlarged pixel by pixel where smaller than `size`."""
    from PIL import Image

    pictures = []
    for row in rows:
        image = Image.fromarray(dataset.picture(table, int(row)))
        if image.size != (size, size):
            larger = max(image.size) <= size
            image = image.resize(
                (size, size), Image.Resampling.NEAREST if larger else Image.Resampling.BILINEAR
            )
        pictures.append(np.asarray(image))
    return np.stack(pictures)
