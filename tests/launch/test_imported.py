"""Features that somebody computed: imported, named in a recipe, trained towards."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from fmri2img.datasets import Dataset
from fmri2img.models.loading import load_decoder

RECIPE = """
name: mine
spaces:
  pixels-16: {extractor: {kind: pixels, size: 16}, losses: {mse: {weight: 1.0}}}
  mine: {extractor: {kind: imported}, losses: {mse: {weight: 1.0}}}
decoder: {latent: 8, hidden: 16, blocks: 1}
finetuning: {steps: 2, global_batch: 16, lanes: 2}
generator: {kind: pixels, space: pixels-16, size: 64}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    assert yaml.safe_load(RECIPE)["name"] == "mine"
    (tmp_path / "mine.yaml").write_text(RECIPE)
    return tmp_path / "mine.yaml"


def test_a_decoder_is_trained_towards_features_from_a_file(
    data: Path, recipe: Path, said: Callable[..., Any], tmp_path: Path
) -> None:
    dataset = Dataset.open(data)
    ids = [dataset.samples(s, split).nsd_id for s in dataset.subjects for split in ("train", "test")]
    rows = 1 + max(int(found.max()) for found in ids)
    np.save(tmp_path / "mine.npy", np.random.default_rng(0).normal(size=(rows, 2, 3)).astype(np.float32))
    brought = said("features", "import", data, "--space", "mine", "--from", tmp_path / "mine.npy")
    assert brought.code == 0, brought.err
    assert said("features", data, "--recipe", recipe).code == 0
    where = ["--data", data, "--subject", "subj01", "--out", tmp_path / "run", "--recipe", recipe]
    trained = said("finetune", "--baseline", "scratch", *where)
    assert trained.code == 0, trained.err
    assert load_decoder(tmp_path / "run").layout().shapes["mine"] == (2, 3)


def test_features_that_were_not_imported_are_asked_for(
    data: Path, recipe: Path, said: Callable[..., Any]
) -> None:
    result = said("features", data, "--recipe", recipe)
    assert result.code == 2
    assert "fmri2img features import" in result.line and "--space mine" in result.line
