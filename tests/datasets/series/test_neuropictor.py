"""NeuroPictor's folder with maps whose pixels are known."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fmri2img.datasets import Dataset, build_dataset
from fmri2img.datasets.prepared import flat_maps
from fmri2img.datasets.prepared.flat_maps import flat_map
from fmri2img.datasets.prepared.neuropictor import NeuroPictorSource
from fmri2img.errors import DamageError, InputError

SHAPE = (8, 8)
OUTSIDE = np.zeros(SHAPE, bool)
OUTSIDE[:2] = OUTSIDE[:, 6:] = True
TEST = [3, 5, 900]
SHARED_ELSE = 40
"""A picture that both subjects saw and that is no test picture."""


@dataclass
class Folder:
    """Two subjects; each saw the test pictures, `SHARED_ELSE`, and pictures of its own."""

    root: Path
    labels: dict[str, list[int]] = field(
        default_factory=lambda: {
            "01": [*range(100, 110), 3, SHARED_ELSE, 5, 900],
            "02": [900, *range(200, 208), 5, 3, SHARED_ELSE],
        }
    )

    def write(self) -> Folder:
        images = self.root / "NSD/nsddata_stimuli/stimuli/images"
        images.mkdir(parents=True)
        for subject, ids in self.labels.items():
            folder = self.root / f"NSD/fmri_npy/{subject}_norm"
            folder.mkdir(parents=True)
            np.save(self.root / f"NSD/fmri_npy/{subject}_label.npy", np.array(ids))
            for number, nsd_id in enumerate(ids):
                np.save(folder / f"surf_{number:06d}.npy", self.map(subject, number))
                image = Image.fromarray(np.full((4, 4, 3), nsd_id % 256, np.uint8))
                image.save(images / f"image_{nsd_id:06d}.png")
        np.save(self.root / "NSD/sub1257_shared_triallabel.npy", np.array(TEST))
        captions = np.array([[f"picture {n}", "once more" if n % 2 else ""] for n in range(1000)])
        np.save(self.root / "NSD/COCO_73k_annots_curated.npy", captions)
        return self

    def map(self, subject: str, number: int) -> np.ndarray:
        values = np.random.default_rng([int(subject), number]).normal(size=SHAPE).astype(np.float32)
        return np.where(OUTSIDE, np.nan if subject == "02" else 0, values).astype(np.float32)

    def surf(self, subject: str, number: int) -> Path:
        return self.root / f"NSD/fmri_npy/{subject}_norm/surf_{number:06d}.npy"


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "neuropictor").write()


def test_pixels_outside_cortex_are_dropped_alike_for_all_subjects(folder: Folder) -> None:
    source = NeuroPictorSource(folder.root)
    assert source.pixels.tolist() == np.flatnonzero(~OUTSIDE).tolist()
    assert {subject.voxels for subject in source.subjects.values()} == {36}


def test_maps_are_rebuilt_from_rows_and_columns(folder: Folder) -> None:
    subject = NeuroPictorSource(folder.root).subjects["subj02"]
    trials, table = subject.session(1), subject.voxel_table()
    rebuilt = flat_map(trials.responses, table["row"], table["column"], SHAPE)
    expected = np.stack([folder.map("02", int(number)) for number in trials.behaviour["map"]])
    assert np.array_equal(rebuilt, np.nan_to_num(expected))


def test_the_whole_map_is_kept_when_asked_for(folder: Folder) -> None:
    source = NeuroPictorSource(folder.root, ["subj01"], whole_map=True)
    trials = source.subjects["subj01"].session(1)
    assert np.array_equal(trials.responses[0].reshape(SHAPE), folder.map("01", 0))


def test_training_pictures_are_those_of_one_subject_alone(folder: Folder) -> None:
    source = NeuroPictorSource(folder.root)
    for name, own in (("subj01", range(100, 110)), ("subj02", range(200, 208))):
        ids = source.subjects[name].session(1).nsd_ids.tolist()
        assert sorted(n for n in ids if not source.is_test(name, n, 1)) == [*own]
        assert sorted(n for n in ids if source.is_test(name, n, 1)) == sorted(TEST)
    assert source.provenance["left_out"].startswith("2 maps")


def test_other_subjects_labels_tell_shared_pictures_also_when_one_is_built(folder: Folder) -> None:
    source = NeuroPictorSource(folder.root / "NSD", ["subj01"])
    assert list(source.subjects) == ["subj01"]
    assert SHARED_ELSE not in source.subjects["subj01"].session(1).nsd_ids


def test_blocks_stand_for_sessions_and_bound_the_memory(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flat_maps, "BLOCK_BYTES", 4 * 36 * 5)
    subject = NeuroPictorSource(folder.root).subjects["subj01"]
    blocks = [subject.session(session) for session in subject.sessions]
    assert [len(block.nsd_ids) for block in blocks] == [5, 5, 3]
    ids = np.concatenate([block.nsd_ids for block in blocks])
    assert ids.tolist() == [n for n in folder.labels["01"] if n != SHARED_ELSE]


def test_a_data_set_is_built_with_pictures_and_captions(folder: Folder, tmp_path: Path) -> None:
    built = build_dataset(NeuroPictorSource(folder.root), tmp_path / "out", normalise="none")
    test = built.samples("subj01", "test")
    assert test.nsd_id.tolist() == TEST
    assert (built.picture(test, 0) == 3).all() and built.captions(test, 0) == ["picture 3", "once more"]
    position = folder.labels["01"].index(3)
    found = built.responses(test, 0)
    expected = folder.map("01", position)[~OUTSIDE].astype(np.float16)
    assert np.array_equal(found[0], expected)


def test_test_maps_change_no_training_shard(folder: Folder, tmp_path: Path) -> None:
    def training(name: str) -> list[str]:
        built: Dataset = build_dataset(NeuroPictorSource(folder.root), tmp_path / name, normalise="pooled")
        shards = [shard for shard in built.manifest.shards if shard.partition == "train"]
        return [column.sha256 for shard in shards for column in shard.columns.values()]

    before = training("before")
    for position in (10, 12, 13):
        np.save(folder.surf("01", position), np.full(SHAPE, 9, np.float32))
    assert training("after") == before


def test_captions_may_be_missing(folder: Folder) -> None:
    (folder.root / "NSD/COCO_73k_annots_curated.npy").unlink()
    source = NeuroPictorSource(folder.root)
    assert source.captions(3) == [] and source.provenance["captions"] == "none"


def test_pictures_are_the_files_as_they_are(folder: Folder) -> None:
    data = NeuroPictorSource(folder.root).picture(5)
    assert Image.open(io.BytesIO(data)).size == (4, 4)
    with pytest.raises(InputError, match=r"image_000077\.png: unpack NSD/nsddata_stimuli\.zip"):
        NeuroPictorSource(folder.root).picture(77)


def test_a_named_split_needs_the_982_pictures(folder: Folder) -> None:
    assert NeuroPictorSource(folder.root).splits == {}
    np.save(folder.root / "NSD/sub1257_shared_triallabel.npy", np.arange(982))
    assert NeuroPictorSource(folder.root).splits["shared982"].partition == "test"


def drop_map(folder: Folder) -> None:
    folder.surf("01", 4).unlink()


def short_label(folder: Folder) -> None:
    np.save(folder.root / "NSD/fmri_npy/01_label.npy", np.arange(9))


def fractions(folder: Folder) -> None:
    np.save(folder.root / "NSD/fmri_npy/01_label.npy", np.linspace(0, 1, 14))


def pickled(folder: Folder) -> None:
    np.save(folder.root / "NSD/sub1257_shared_triallabel.npy", np.array([{1}], object))


def pickled_captions(folder: Folder) -> None:
    np.save(folder.root / "NSD/COCO_73k_annots_curated.npy", np.array([["a"], None], object))


def cut_map(folder: Folder) -> None:
    folder.surf("01", 4).write_bytes(folder.surf("01", 4).read_bytes()[:-9])


def larger_map(folder: Folder) -> None:
    np.save(folder.surf("02", 4), np.ones((9, 9), np.float32))


def deep_map(folder: Folder) -> None:
    np.save(folder.surf("02", 4), np.ones((1, *SHAPE), np.float32))


def nan_inside(folder: Folder) -> None:
    values = folder.map("02", 4)
    values[4, 4] = np.nan
    np.save(folder.surf("02", 4), values)


@pytest.mark.parametrize(
    ("hurt", "message"),
    [
        (drop_map, r"01_norm holds 13 maps, surf_000004\.npy not among them, and 01_label\.npy names 14"),
        (short_label, r"01_norm holds 14 maps, and 01_label\.npy names 9"),
        (fractions, r"01_label\.npy must hold picture numbers"),
        (pickled, r"sub1257_shared_triallabel\.npy cannot be read"),
        (pickled_captions, r"COCO_73k_annots_curated\.npy cannot be read"),
        (cut_map, r"surf_000004\.npy cannot be read"),
        (larger_map, r"surf_000004\.npy has 81 pixels, and other maps 64"),
        (deep_map, r"surf_000004\.npy holds float32 \(1, 8, 8\)"),
        (nan_inside, r"surf_000004\.npy: 1 pixels that other maps have are not a number"),
    ],
)
def test_damage_is_named(
    folder: Folder, tmp_path: Path, hurt: Callable[[Folder], None], message: str
) -> None:
    hurt(folder)
    with pytest.raises(DamageError, match=message):
        build_dataset(NeuroPictorSource(folder.root), tmp_path / "out", normalise="none")
    assert not (tmp_path / "out").exists()


def test_what_is_missing_is_named(folder: Folder, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no 01_label\.npy"):
        NeuroPictorSource(tmp_path)
    with pytest.raises(InputError, match=r"subj05 is not in .*: use subj01, subj02"):
        NeuroPictorSource(folder.root, ["subj05"])
    (folder.root / "NSD/sub1257_shared_triallabel.npy").unlink()
    with pytest.raises(InputError, match=r"no file .*sub1257_shared_triallabel\.npy"):
        NeuroPictorSource(folder.root)
