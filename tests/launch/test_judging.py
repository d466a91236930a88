"""`fmri2img evaluate`: as before without a protocol; with one, what is here is measured and what is not is said."""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fmri2img.datasets import Dataset
from fmri2img.errors import InputError
from fmri2img.evaluation import Evaluation, EvaluationSettings
from fmri2img.evaluation.looking import look_at
from fmri2img.evaluation.networks import Network
from fmri2img.features.extractors import Pixels
from fmri2img.launch import judging, judging_more
from fmri2img.launch.made import read_made

Say = Callable[..., Any]


@pytest.fixture(scope="module")
def made(said: Say, world: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two samples of each of the ten test pictures."""
    out = tmp_path_factory.mktemp("judging") / "made"
    words = ["reconstruct", "--from", world.finetuned, "--data", world.data, "--out", out]
    assert said(*words, "--workers", 0, "--samples", 2).code == 0
    return out


def only_clip(name: str, weights: str, layers: Sequence[str], device: torch.device) -> Network:
    """CLIP by a stand-in, the others nowhere to be had."""
    if name != "clip":
        raise InputError(f"{name} is not here: bring it")

    def look(pictures: torch.Tensor) -> Mapping[str, torch.Tensor]:
        return {"image_embeds": torch.nn.functional.adaptive_avg_pool2d(pictures, 6).flatten(1)}

    return look


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*_: object, **__: object) -> np.ndarray:
        raise InputError("it is not here: bring it")

    monkeypatch.setattr(judging, "look_at", partial(look_at, load=only_clip))
    monkeypatch.setattr(judging_more, "sentence_similarity", absent)
    monkeypatch.setattr(judging_more, "meteor", absent)


def test_without_a_protocol_pixels_and_features_are_judged_as_before(said: Say, made: Path) -> None:
    result = said("evaluate", made)
    assert result.code == 0 and "Missing" not in result.out and "comparable" not in result.out
    found = Evaluation.read(made / "metrics.json")
    kinds = {"pixcorr", "ssim", "two_way_pixels"}
    assert {name for name in found.metrics if "_caption" not in name and "pixels-16" not in name} == kinds
    assert found.missing == {} and found.settings.protocol is None
    assert found.measured is not None and found.measured.split is None
    assert found.published and not any(row.comparable for row in found.published)


def test_the_spread_over_samples_stands_apart_from_the_interval(said: Say, made: Path) -> None:
    result = said("evaluate", made)
    assert result.code == 0 and "±0." in result.out
    found = Evaluation.read(made / "metrics.json")
    measure = found.metrics["pixcorr"]
    scores = np.array(found.scores["pixcorr"]).reshape(10, 2)
    assert measure.seeds is not None and measure.seeds.seeds == 2
    assert measure.seeds.deviation == pytest.approx(scores.mean(0).std(ddof=1))
    assert (measure.n, measure.units, measure.unit) == (20, 10, "picture")


@pytest.mark.usefixtures("offline")
def test_a_protocol_measures_what_is_here_and_names_what_is_not(said: Say, made: Path) -> None:
    result = said("evaluate", made, "--protocol", "mindeye2")
    assert result.code == 0, result
    found = Evaluation.read(made / "metrics.json")
    assert {"pixcorr", "ssim", "ssim_columns", "clip"} <= set(found.metrics)
    assert {"image_retrieval_raw_pixels-16", "brain_retrieval_raw_pixels-16"} <= set(found.metrics)
    assert "pools of each item's own" in found.metrics["image_retrieval_raw_pixels-16"].description
    assert not found.metrics["ssim_columns"].headline
    assert set(found.missing) == {"AlexNet(2)", "AlexNet(5)", "Inception", "EffNet-B", "SwAV"}
    assert "Missing: AlexNet(2): alexnet is not here: bring it" in result.out
    assert "MindEye2" in result.out and "No published result is comparable" in result.out
    assert said("report", made).code == 0


@pytest.mark.usefixtures("offline")
def test_the_field_s_test_pictures_are_not_shrunk_to_the_size_made(
    said: Say, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []

    def watch(how: Any, made: np.ndarray, seen: np.ndarray, *rest: Any, **more: Any) -> Any:
        sizes.append(seen.shape[1])
        return {}, {}

    monkeypatch.setattr(judging, "look_at", watch)
    assert said("evaluate", made, "--protocol", "brain-diffuser").code == 0
    data = Dataset.open(json.loads((made / "source.json").read_text())["data"])
    assert sizes == [data.picture(data.samples("subj01", "test"), 0).shape[0]]


@pytest.mark.usefixtures("offline")
def test_responses_predicted_from_pictures_made_are_compared_by_region(said: Say, made: Path) -> None:
    assert said("evaluate", made, "--brain", "pixels-16").code == 0
    found = Evaluation.read(made / "metrics.json")
    data = Dataset.open(json.loads((made / "source.json").read_text())["data"])
    regions = [name for name in found.metrics if name.startswith("brain_correlation_")]
    labels = data.voxel_table("subj01")["roi"]
    assert "brain_correlation_all" in regions
    assert {name.removeprefix("brain_correlation_") for name in regions} - {"all"} <= set(labels)
    assert all(-1 <= found.metrics[name].value <= 1 for name in regions)
    result = said("evaluate", made, "--brain", "nothing")
    assert result.code == 2 and "--brain nothing: the data set has the feature spaces" in result.line


def test_the_encoding_model_is_given_training_pictures_and_judged_by_the_mean_of_repeats(
    world: Any, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An encoding model that knew each measured response would score 1 in every region."""
    data, read = Dataset.open(world.data), read_made(made)
    train, test = data.samples("subj01", "train"), data.samples("subj01", "test")
    row_of = {int(nsd_id): row for row, nsd_id in enumerate(test.nsd_id)}
    asked: dict[str, np.ndarray] = {}

    def all_knowing(
        features: np.ndarray, responses: np.ndarray, groups: np.ndarray, shown: np.ndarray, *, seed: int
    ) -> np.ndarray:
        asked.update(features=features, responses=responses, groups=groups, shown=shown)
        means = [data.responses(test, row_of[item["nsd_id"]]).astype(float).mean(0) for item in read.items]
        return np.stack(means)

    monkeypatch.setattr(judging_more, "predict_responses", all_knowing)
    judged, missing = judging_more.judge_brain(data, read, EvaluationSettings(brain="pixels-16"), "cpu")
    assert missing == {}
    assert all(found.scores == pytest.approx(np.ones(20)) for found in judged.values())
    assert np.array_equal(asked["groups"], train.nsd_id)
    assert np.array_equal(asked["features"][3], data.feature(train, 3, "pixels-16"))
    assert asked["responses"][3] == pytest.approx(data.responses(train, 3).astype(float).mean(0), abs=1e-3)
    again = Pixels(size=16).load()(list(read.pictures))
    assert np.array_equal(asked["shown"], again)


@pytest.mark.usefixtures("offline")
def test_captions_are_compared_with_those_of_the_pictures(said: Say, made: Path, tmp_path: Path) -> None:
    data = Dataset.open(json.loads((made / "source.json").read_text())["data"])
    table = data.samples("subj01", "test")
    captions = {str(table.nsd_id[row]): data.captions(table, row)[0] for row in range(len(table))}
    path = tmp_path / "captions.json"
    path.write_text(json.dumps(captions))
    result = said("evaluate", made, "--captions", path)
    assert result.code == 0 and "Missing: METEOR: it is not here: bring it" in result.out
    found = Evaluation.read(made / "metrics.json")
    assert found.metrics["rouge_1"].value == found.metrics["rouge_l"].value == pytest.approx(1.0)
    assert set(found.missing) == {"METEOR", "Sentence similarity"}
    captions.pop(next(iter(captions)))
    path.write_text(json.dumps(captions))
    assert "every item needs one" in said("evaluate", made, "--captions", path).line
    path.write_text("[]")
    assert "it must be a JSON object" in said("evaluate", made, "--captions", path).line
    assert "cannot be read" in said("evaluate", made, "--captions", tmp_path / "none.json").line
