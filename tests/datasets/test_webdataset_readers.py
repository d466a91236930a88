"""Other people's readers decode our good shards to the values we read: WebDataset, and Hugging Face's loader."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import pytest

from fmri2img.datasets import Dataset, add_feature_space


@pytest.fixture
def toned(tiny: Dataset) -> Dataset:
    """`tiny` with a feature space."""
    return add_feature_space(
        tiny.path,
        name="tone",
        shape=(3,),
        dtype="float32",
        extractor={},
        compute=lambda pictures, _: np.stack([picture.mean((0, 1)) for picture in pictures]),
    )


def urls(dataset: Dataset, column: str) -> list[str]:
    """Training shards of one subject, in order."""
    chosen = [s for s in dataset.manifest.shards if (s.subject, s.partition) == ("subj01", "train")]
    return [str(dataset.path / shard.columns[column].file) for shard in chosen]


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_webdataset_decodes_every_column_to_equal_values(toned: Dataset) -> None:
    webdataset = pytest.importorskip("webdataset")
    samples = toned.samples("subj01", "train")
    columns = [
        list(webdataset.WebDataset(urls(toned, name), shardshuffle=False).decode("rgb8"))
        for name in ("responses", "stimuli", "tone")
    ]
    gc.collect()  # it leaves its files to the collector, which warns
    for i, (responses, stimuli, tone) in enumerate(zip(*columns, strict=True)):
        assert responses["__key__"] == stimuli["__key__"] == tone["__key__"] == samples.keys[i]
        np.testing.assert_array_equal(responses["betas.npy"], toned.responses(samples, i))
        assert responses["json"]["nsd_id"] == samples.nsd_id[i]
        assert responses["json"]["trials"] == toned.trials(samples, i)
        np.testing.assert_array_equal(stimuli["png"], toned.picture(samples, i))
        assert stimuli["json"]["captions"] == toned.captions(samples, i)
        np.testing.assert_array_equal(tone["npy"], toned.feature(samples, i, "tone"))


@pytest.mark.filterwarnings("ignore")
def test_hugging_face_datasets_decodes_every_column_to_equal_values(toned: Dataset, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="Hugging Face datasets is not installed")
    samples = toned.samples("subj01", "train")
    rows = {
        name: datasets.load_dataset(
            "webdataset", data_files=urls(toned, name), split="train", cache_dir=str(tmp_path / "cache")
        )
        for name in ("responses", "stimuli", "tone")
    }
    for i in range(len(samples)):
        found = {name: table[i] for name, table in rows.items()}
        assert {row["__key__"] for row in found.values()} == {samples.keys[i]}
        np.testing.assert_array_equal(found["responses"]["betas.npy"], toned.responses(samples, i))
        assert found["responses"]["json"]["nsd_id"] == samples.nsd_id[i]
        np.testing.assert_array_equal(np.asarray(found["stimuli"]["png"]), toned.picture(samples, i))
        np.testing.assert_array_equal(found["tone"]["npy"], toned.feature(samples, i, "tone"))
