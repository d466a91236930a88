"""Reconstruction and fits use the trials of a named split and no others."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from fmri2img.datasets import Dataset, build_dataset
from fmri2img.datasets.manifest import seal, write_manifest
from fmri2img.launch.items import items_of
from fmri2img.simulation import Simulation, SimulationSpec
from fmri2img.trainer.batches import picture_rows

LAST = 2


def with_split(folder: Path) -> Dataset:
    """A simulated data set with a split of the test trials of the first sessions."""
    spec = SimulationSpec(
        subjects={"subj01": 32}, sessions=4, trials_per_session=30, repeats=3, test_pictures=10, seed=3
    )
    dataset = build_dataset(Simulation(spec), folder)
    plain = dataset.manifest.model_dump()
    plain["splits"]["early"] = {"partition": "test", "last_session": {"subj01": LAST}}
    write_manifest(folder, seal(plain))
    return Dataset.open(folder)


def test_averages_are_over_the_trials_of_the_split(tmp_path: Path) -> None:
    dataset = with_split(tmp_path / "data")
    early, whole = dataset.samples("subj01", "early"), dataset.samples("subj01", "test")
    assert 0 < early.repeats.sum() < whole.repeats.sum()
    for repeats in ("average", "single"):
        job: Any = SimpleNamespace(subjects=["subj01"], split="early", repeats=repeats, samples=1)
        used = [(item.row, repeat) for item in items_of(job, dataset) for repeat in item.repeats]
        assert len(used) == early.repeats.sum()
        assert {int(early.sessions[row, repeat]) for row, repeat in used} <= set(range(1, LAST + 1))
    rows = picture_rows(dataset, early, [])
    for line, nsd_id in enumerate(early.nsd_id.tolist()):
        place = whole.nsd_id.tolist().index(nsd_id)
        sessions = whole.sessions[place][: whole.repeats[place]]
        chosen = dataset.responses(whole, place)[sessions <= LAST].astype(np.float32)
        np.testing.assert_allclose(np.asarray(rows.responses[line]), chosen.mean(0), rtol=1e-5, atol=1e-6)
