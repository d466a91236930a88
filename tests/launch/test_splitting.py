"""Holding clusters out of training: which pictures are where, and what the drop in scores is."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fmri2img.datasets import Dataset, NamedSplit, verify
from fmri2img.datasets.named_splits import add_splits
from fmri2img.errors import InputError
from fmri2img.evaluation.clusters import nearest_centre
from fmri2img.launch.auditing import training_split


def pictures(dataset: Dataset, split: str) -> dict[int, np.ndarray]:
    """Features of every distinct picture of a split, by id."""
    found: dict[int, np.ndarray] = {}
    for subject in dataset.subjects:
        table = dataset.samples(subject, split)
        features = dataset.read_features(table, np.arange(len(table)), "pixels-16")
        found |= dict(zip(table.nsd_id.tolist(), features.reshape(len(table), -1), strict=True))
    return found


def test_no_picture_of_a_held_out_cluster_is_left_in_training(
    said: Callable[..., Any], world: Any, tmp_path: Path
) -> None:
    out = tmp_path / "split"
    told = said(
        *("data", "split", world.data, "--out", out, "--hold-out-clusters", 1, "--clusters", 2),
        *("--space", "pixels-16", "--name", "apart", "--seed", 1),
    )
    assert told.code == 0, told.err
    before, after = Dataset.open(world.data), Dataset.open(out)
    assert verify(out) == [] and after.fingerprint != before.fingerprint
    parts = {name: pictures(after, f"apart-{name}") for name in ("train", "control", "test")}
    whole, test = pictures(after, "train"), pictures(after, "test")
    assert len(parts["train"]) == len(parts["control"]) < len(whole) and set(parts["train"]) < set(whole)
    held = [v for n, v in whole.items() if n not in parts["train"]] + list(parts["test"].values())
    kept = list(parts["train"].values()) + [v for n, v in test.items() if n not in parts["test"]]
    middles = np.stack([np.mean(held, 0), np.mean(kept, 0)]).astype(np.float64)
    assert (nearest_centre(np.stack(held), middles) == 0).mean() > 0.9
    assert (nearest_centre(np.stack(kept), middles) == 1).mean() > 0.9
    assert set(parts["control"]) != set(parts["train"])


def test_a_decoder_is_trained_on_the_split_and_its_checkpoint_says_so(
    said: Callable[..., Any], world: Any, flags: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "split"
    kept = Dataset.open(world.data).samples("subj01", "train").nsd_id[:20].tolist()
    add_splits(world.data, out, {"some": NamedSplit("train", kept), "few": NamedSplit("test")})
    run = ("finetune", "--data", out, "--subject", "subj01", "--baseline", "ridge", *flags)
    told = said(*run, "--out", tmp_path / "run", "--split", "some")
    assert told.code == 0, told.err
    assert training_split(tmp_path / "run") == "some" and training_split(world.finetuned) == "train"
    whole = said(*run, "--out", tmp_path / "whole")
    assert whole.code == 0 and training_split(tmp_path / "whole") == "train"
    told = said(*run, "--out", tmp_path / "other", "--split", "few")
    assert (told.code, "few is of test pictures" in told.line) == (2, True)


def test_splits_that_cannot_be_are_refused(said: Callable[..., Any], world: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'test' cannot name a further split"):
        add_splits(world.data, tmp_path / "a", {"test": NamedSplit("test")})
    (tmp_path / "b").mkdir()
    with pytest.raises(InputError, match="exists: give a new folder"):
        add_splits(world.data, tmp_path / "b", {"more": NamedSplit("test")})
    split = ("data", "split", world.data, "--out", tmp_path / "c", "--space", "pixels-16", "--clusters", 3)
    told = said(*split, "--hold-out-clusters", 3)
    assert (told.code, "use 1 to 2" in told.line) == (2, True)
    assert not (tmp_path / "c").exists() and not (tmp_path / "a").exists()
