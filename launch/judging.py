"""From a finished reconstruction to scores: read what was made and what was seen, and evaluate it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from fmri2img.datasets import Dataset, Samples
from fmri2img.datasets.samples import concatenate
from fmri2img.errors import InputError
from fmri2img.evaluation import Evaluation, EvaluationSettings, Reconstructions, Truth, evaluate
from fmri2img.evaluation.given import places
from fmri2img.evaluation.judged import Judged
from fmri2img.evaluation.looking import look_at
from fmri2img.evaluation.protocols import protocol
from fmri2img.evaluation.published import Measured, split_of
from fmri2img.features.extractors import ClipImage
from fmri2img.launch.judging_more import judge_brain, judge_captions
from fmri2img.launch.made import Made, read_made

Candidates = Literal["split", "subject"]


def judge(
    made_folder: Path,
    data: Path,
    settings: EvaluationSettings,
    *,
    candidates: Candidates = "split",
    captions: Path | None = None,
    device: torch.device | str = "cpu",
) -> Evaluation:
    """Evaluate a reconstruction against the pictures of its split, or against all that the subject saw.

    Two-way identification compares predicted with true features as they are, as the field does; retrieval, and two-way
    identification by direction, compare the decoder's retrieval directions with features centred on the training mean.
    What a protocol, an encoding model or captions need and is not here is told in the result, and the rest is measured.

    Args:
        captions: a JSON file of predicted captions by item key or nsd_id, to compare with those of the pictures.
        device: what networks compute on.

    Raises InputError for data it was not made from.
    """
    judging = open_judging(made_folder, data, settings, candidates=candidates, device=device)
    more: dict[str, Judged] = {}
    missing: dict[str, str] = {}
    for found, absent in (
        judge_brain(judging.dataset, judging.made, settings, device),
        judge_captions(judging.dataset, judging.made, captions, device),
    ):
        more |= found
        missing |= absent
    return judging.score(judging.reconstructions, more=more, missing=missing)


@dataclass(frozen=True)
class Judging:
    """A reconstruction opened to be judged, and whatever else is scored by the same metrics in its place."""

    made: Made
    dataset: Dataset
    reconstructions: Reconstructions
    truth: Truth
    settings: EvaluationSettings
    device: torch.device | str

    def score(
        self,
        made: Reconstructions,
        *,
        more: Mapping[str, Judged] | None = None,
        missing: Mapping[str, str] | None = None,
    ) -> Evaluation:
        """Scores by all metrics of the settings that need no responses and no captions, and `more` beside them."""
        for name in self.settings.networks:
            if made.pictures is None or self.truth.pictures is None:
                continue
            network = ClipImage(model=name).load(self.device)
            made.perceived[name] = network(list(made.pictures))
            if name not in self.truth.perceived:
                self.truth.perceived[name] = network(list(self.truth.pictures))
        looked, absent = _looked(made, self.truth, self.settings, self.device)
        return evaluate(
            made,
            self.truth,
            self.settings,
            more=looked | dict(more or {}),
            missing=absent | dict(missing or {}),
            measured=_measured(self.dataset, made, self.settings),
        )


def open_judging(
    made_folder: Path,
    data: Path,
    settings: EvaluationSettings,
    *,
    candidates: Candidates = "split",
    device: torch.device | str = "cpu",
) -> Judging:
    """Read what was made and what was seen. Raises InputError for data it was not made from."""
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
    whole = settings.protocol is not None
    reconstructions, truth = _made(made), _truth(dataset, tables, made, whole=whole)
    return Judging(made, dataset, reconstructions, truth, settings, device)


def _looked(
    made: Reconstructions, truth: Truth, settings: EvaluationSettings, device: torch.device | str
) -> tuple[dict[str, Judged], dict[str, str]]:
    """What the protocol's networks say, where there is a protocol."""
    if settings.protocol is None or made.pictures is None or truth.pictures is None:
        return {}, {}
    index = places(made, truth)
    return look_at(protocol(settings.protocol), made.pictures, truth.pictures, index, device=device)


def _measured(dataset: Dataset, made: Reconstructions, settings: EvaluationSettings) -> Measured:
    """On what: a split of NSD is known by the release that the data set names and by its number of pictures."""
    pictures = len(np.unique(made.nsd_ids))
    return Measured(
        data=dataset.manifest.name,
        split=split_of(dataset.manifest.provenance.get("release", ""), pictures),
        pictures=pictures,
        subject=made.subject,
        protocol=settings.protocol,
    )


def _made(made: Made) -> Reconstructions:
    return Reconstructions(
        keys=np.array([item["key"] for item in made.items]),
        subject=made.job.subjects[0],
        nsd_ids=np.array([item["nsd_id"] for item in made.items]),
        pictures=made.pictures,
        features=made.features,
        directions=made.retrieval,
        seeds=np.array([item["sample"] for item in made.items]),
    )


def _truth(dataset: Dataset, tables: list[Samples], made: Made, *, whole: bool) -> Truth:
    """The candidates; their pictures `whole` as the data set has them, else of the size of those made."""
    table = concatenate(tables[0].subject, tables)
    rows = np.unique(table.nsd_id, return_index=True)[1]
    features = {name: dataset.read_features(table, rows, name) for name in made.job.spaces}
    centres = {name: dataset.feature_statistics(name)[0] for name in made.job.spaces}
    size = max(dataset.picture(table, int(rows[0])).shape[:2]) if whole else made.pictures.shape[1]
    pictures = seen_pictures(dataset, table, rows, size)
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
