"""Metrics that need more than pictures and features: responses for brain correlation, captions for words."""

import json
from pathlib import Path

import numpy as np
import torch
from pydantic import TypeAdapter, ValidationError

from fmri2img.datasets import Dataset, Samples
from fmri2img.errors import InputError
from fmri2img.evaluation import EvaluationSettings
from fmri2img.evaluation.judged import Judged
from fmri2img.evaluation.metrics_brain import brain_correlation, mean_response, predict_responses, rois_of
from fmri2img.evaluation.metrics_captions import Pairs, meteor, rouge_1, rouge_l, sentence_similarity
from fmri2img.evaluation.protocols import protocol
from fmri2img.features.extractors import RECORDED, AnyExtractor, Imported, made_with
from fmri2img.features.loaded import LoadedExtractor
from fmri2img.launch.made import Made

Found = tuple[dict[str, Judged], dict[str, str]]
"""Scores by metric, and what is missing with how to get it."""

BRAIN = "Brain correlation"


def judge_brain(
    dataset: Dataset, made: Made, settings: EvaluationSettings, device: torch.device | str
) -> Found:
    """Brain correlation by ROI, through ridge regression from a feature space to the subject's voxels.

    The encoding model is fitted on the subject's training pictures; the pictures made are given features by the
    extractor that the data set records, so that the path is picture to features to responses for both.

    Raises InputError for a feature space that the data set has not.
    """
    if settings.brain is None:
        return {}, {}
    space, subject = settings.brain, made.job.subjects[0]
    if space not in dataset.feature_spaces:
        known = ", ".join(dataset.feature_spaces) or "none"
        raise InputError(f"--brain {space}: the data set has the feature spaces {known}, use one of them")
    if dataset.inputs(subject) != dataset.voxels(subject):
        return {}, {BRAIN: "responses are windows in time: build the data set of betas"}
    try:
        extractor = _extractor(dataset, space, device)
    except InputError as error:
        return {}, {BRAIN: str(error)}
    padded = settings.protocol is not None and protocol(settings.protocol).padded
    train, seen = dataset.samples(subject, "train"), dataset.samples(subject, made.job.split)
    row_of = {int(nsd_id): row for row, nsd_id in enumerate(seen.nsd_id)}
    measured = _responses(dataset, seen, [row_of[item["nsd_id"]] for item in made.items], padded=padded)
    predicted = predict_responses(
        dataset.read_features(train, np.arange(len(train)), space),
        _responses(dataset, train, range(len(train)), padded=False),
        train.nsd_id,
        extractor(list(made.pictures)),
        seed=settings.seed,
    )
    labels = dataset.voxel_table(subject).get("roi", np.full(dataset.voxels(subject), ""))
    rois = rois_of(labels)
    return {
        f"brain_correlation_{name}": Judged(
            scores,
            f"Brain correlation, {name}",
            f"Correlation over {int(rois[name].sum())} voxels of the response that ridge from {space} predicts "
            "for the reconstruction with the mean response measured.",
            0.0,
        )
        for name, scores in brain_correlation(predicted, measured, rois).items()
    }, {}


def _extractor(dataset: Dataset, space: str, device: torch.device | str) -> LoadedExtractor:
    """What made a feature space, ready; InputError where it cannot be had or has other weights now."""
    recorded = dataset.feature_spaces[space].extractor
    try:
        found = TypeAdapter(AnyExtractor).validate_python(
            {key: value for key, value in recorded.items() if key not in RECORDED}
        )
    except ValidationError as error:
        raise InputError(
            f"{space} was made by what this version does not know: name another space"
        ) from error
    if isinstance(found, Imported):
        raise InputError(f"{space} was imported, so pictures made have no features in it: name another space")
    if found.kind in ("caption-words", "clip-text"):
        raise InputError(f"{space} is of captions, which pictures made have none of: name another space")
    if not made_with(found, recorded):
        raise InputError(f"the weights that made {space} are not those of its model here: put them back")
    return found.load(device)


def _responses(dataset: Dataset, table: Samples, rows: range | list[int], *, padded: bool) -> np.ndarray:
    """Mean responses over repeats, (rows, V) float32."""
    out = np.empty((len(rows), dataset.voxels(table.subject)), np.float32)
    for place, row in enumerate(rows):
        out[place] = mean_response(dataset.responses(table, row).astype(np.float32), padded=padded)
    return out


def judge_captions(dataset: Dataset, made: Made, captions: Path | None, device: torch.device | str) -> Found:
    """ROUGE, METEOR and the similarity of sentences of predicted captions with the first caption of each picture.

    Raises InputError for a file that is not a caption for every item, or pictures without captions.
    """
    if captions is None:
        return {}, {}
    pairs = _pairs(dataset, made, captions)
    found = {
        "rouge_1": Judged(
            rouge_1(pairs), "ROUGE-1", "F1 of the words shared with the picture's caption.", None
        ),
        "rouge_l": Judged(
            rouge_l(pairs), "ROUGE-L", "F1 of the longest subsequence of words shared with the caption.", None
        ),
    }
    missing = {}
    try:
        scores = meteor(pairs)
        found["meteor"] = Judged(
            scores, "METEOR", "METEOR by nltk, against the picture's first caption.", None
        )
    except InputError as error:
        missing["METEOR"] = str(error)
    try:
        scores = sentence_similarity(pairs, device=device)
        found["sentence_similarity"] = Judged(
            scores, "Sentence similarity", "Cosine similarity of sentence embeddings, all-MiniLM-L6-v2.", None
        )
    except InputError as error:
        missing["Sentence similarity"] = str(error)
    return found, missing


def _pairs(dataset: Dataset, made: Made, captions: Path) -> Pairs:
    """(predicted, first reference) caption of every item."""
    try:
        told = json.loads(captions.read_bytes())
        predicted = {str(key): str(value) for key, value in told.items()}
    except OSError as error:
        raise InputError(
            f"--captions {captions} cannot be read: {error.strerror}; give a JSON file"
        ) from error
    except (ValueError, AttributeError) as error:
        raise InputError(
            f"--captions {captions}: it must be a JSON object from item key or nsd_id to text"
        ) from error
    table = dataset.samples(made.job.subjects[0], made.job.split)
    row_of = {int(nsd_id): row for row, nsd_id in enumerate(table.nsd_id)}
    pairs = []
    for item in made.items:
        text = predicted.get(item["key"], predicted.get(str(item["nsd_id"])))
        if text is None:
            raise InputError(f"--captions {captions} has none for {item['key']}: every item needs one")
        references = dataset.captions(table, row_of[item["nsd_id"]])
        if not references:
            raise InputError(
                f"picture {item['nsd_id']} has no captions to compare with: leave --captions away"
            )
        pairs.append((text, references[0]))
    return pairs
