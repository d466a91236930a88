"""The Croissant file beside a data set is valid, names every shard with its digest, and can be read by."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fmri2img.datasets import Dataset, add_feature_space, verify
from fmri2img.datasets.croissant import CONFORMS_TO, CROISSANT, croissant, write_croissant
from fmri2img.files import sha256_file

# What mlcroissant and rdflib raise about themselves.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::PendingDeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@pytest.fixture
def described(tiny: Dataset) -> Dataset:
    """A data set with a feature space, and its Croissant file as it should be after that."""
    dataset = add_feature_space(
        tiny.path,
        name="tone",
        shape=(3,),
        dtype="float32",
        extractor={"model": "mean colour"},
        compute=lambda pictures, _: np.stack([picture.mean((0, 1)) for picture in pictures]),
    )
    write_croissant(dataset.path, dataset.manifest)
    return dataset


def test_it_is_written_at_the_build_and_is_no_stray_file(tiny: Dataset) -> None:
    assert json.loads((tiny.path / CROISSANT).read_text()) == croissant(tiny.manifest)
    assert verify(tiny.path) == []
    (tiny.path / CROISSANT).unlink()
    assert verify(tiny.path) == []


def test_every_shard_is_in_it_with_size_and_digest(described: Dataset) -> None:
    found = json.loads((described.path / CROISSANT).read_text())
    assert found["conformsTo"] == CONFORMS_TO
    files = {entry["@id"]: entry for entry in found["distribution"] if entry["@type"] == "cr:FileObject"}
    tars = {path.relative_to(described.path).as_posix() for path in described.path.rglob("*.tar")}
    assert {file for file in files if file.endswith(".tar")} == tars
    for file, entry in files.items():
        assert entry["sha256"] == sha256_file(described.path / file)
        assert entry["contentSize"] == f"{(described.path / file).stat().st_size} B"


def test_the_same_manifest_gives_the_same_bytes(described: Dataset, tmp_path: Path) -> None:
    write_croissant(tmp_path, described.manifest)
    assert (tmp_path / CROISSANT).read_bytes() == (described.path / CROISSANT).read_bytes()


def test_mlcroissant_reads_the_samples_it_describes(
    described: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlcroissant = pytest.importorskip("mlcroissant")
    epath = pytest.importorskip("etils.epath")
    cache = epath.Path(tmp_path / "extracted")
    monkeypatch.setattr("mlcroissant._src.operation_graph.operations.extract.EXTRACT_PATH", cache)
    read = mlcroissant.Dataset(str(described.path / CROISSANT))
    issues = read.metadata.ctx.issues
    assert issues.errors == set()
    assert all("is recommended" in warning for warning in issues.warnings)

    def records(name: str) -> dict[str, Any]:
        found = list(read.records(name))
        return {record[f"{name}/key"].decode(): record for record in found}

    for partition in ("train", "test"):
        by_key: dict[str, tuple[str, int]] = {}
        for subject in described.subjects:
            samples = described.samples(subject, partition)
            by_key |= {str(key): (subject, i) for i, key in enumerate(samples.keys)}
        for kind in ("samples", "responses", "pictures", "captions", "features-tone"):
            found = records(f"{partition}-{kind}")
            assert set(found) == set(by_key)
            for key, (subject, i) in by_key.items():
                samples, name = described.samples(subject, partition), f"{partition}-{kind}"
                content = found[key][f"{name}/content"]
                assert found[key][f"{name}/subject"] == subject.encode()
                assert found[key][f"{name}/nsd_id"] == samples.nsd_id[i]
                if kind == "samples":
                    assert json.loads(content)["trials"] == described.trials(samples, i)
                elif kind == "captions":
                    assert json.loads(content)["captions"] == described.captions(samples, i)
                elif kind == "pictures":
                    assert (np.asarray(content) == described.picture(samples, i)).all()
                else:
                    array = np.load(io.BytesIO(content), allow_pickle=False)
                    same = described.responses(samples, i)
                    assert (
                        array == (same if kind == "responses" else described.feature(samples, i, "tone"))
                    ).all()
    shutil.rmtree(tmp_path / "extracted")
