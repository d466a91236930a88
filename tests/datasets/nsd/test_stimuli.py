"""Pictures and captions are those of the nsd_id, and files that are damaged are named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from fmri2img.datasets.nsd import stimuli as module
from fmri2img.datasets.nsd.layout import NsdLayout
from fmri2img.datasets.nsd.stimuli import Stimuli, read_captions
from fmri2img.errors import DamageError, InputError


@pytest.fixture
def seen(release: Any) -> list[int]:
    found: list[int] = release.seen(["subj01"], 1)[:50]
    return found


def captions_file(release: Any, split: str) -> Path:
    path: Path = release.root / f"nsddata_stimuli/stimuli/nsd/annotations/captions_{split}.json"
    return path


def test_a_picture_is_that_of_its_id_or_smaller(release: Any, seen: list[int]) -> None:
    layout = NsdLayout(release.root)
    for nsd_id in seen[:5]:
        np.testing.assert_array_equal(Stimuli(layout).picture(nsd_id), release.picture(nsd_id))
    small = Stimuli(layout, size=6).picture(seen[0])
    assert small.shape == (6, 6, 3) and small.dtype == np.uint8
    assert abs(float(small.mean()) - float(release.picture(seen[0]).mean())) < 5


def test_sizes_and_ids_beyond_the_pictures_are_refused(release: Any) -> None:
    layout = NsdLayout(release.root)
    for size in (0, 13):
        with pytest.raises(InputError, match=f"A picture size of {size} is not possible: use 1 to 12"):
            Stimuli(layout, size=size)
    with pytest.raises(InputError, match=r"no picture 73000 .* it has 0 to 72999"):
        Stimuli(layout).picture(73_000)


def test_a_damaged_file_of_pictures_is_named(copied: Any) -> None:
    layout = NsdLayout(copied.root)
    data = layout.stimuli.read_bytes()
    layout.stimuli.write_bytes(data[: len(data) // 2])
    with pytest.raises(DamageError, match=r"nsd_stimuli.hdf5 cannot be read: .*Fetch it again"):
        Stimuli(layout)
    with h5py.File(layout.stimuli, "w") as file:
        file["imgBrick"] = np.zeros((4, 5, 5), np.uint8)
    with pytest.raises(DamageError, match="must hold 'imgBrick'"):
        Stimuli(layout)
    layout.stimuli.unlink()
    with pytest.raises(InputError, match=r"nsd_stimuli.hdf5 is missing: bring it with: .* --parts stimuli"):
        Stimuli(layout)


@pytest.mark.parametrize("piece", [7, 64, 1 << 22])
def test_captions_are_found_through_the_table(
    release: Any, seen: list[int], monkeypatch: pytest.MonkeyPatch, piece: int
) -> None:
    monkeypatch.setattr(module, "PIECE", piece)
    found = read_captions(NsdLayout(release.root), seen)
    assert found == {n: [f"Picture {n}, é 0", f"Picture {n}, é 1"] for n in seen}


def test_without_cocos_files_there_are_no_captions(copied: Any, seen: list[int]) -> None:
    captions_file(copied, "val2017").unlink()
    with pytest.raises(InputError, match=r"captions_val2017.json is missing beside its sibling"):
        read_captions(NsdLayout(copied.root), seen)
    captions_file(copied, "train2017").unlink()
    assert read_captions(NsdLayout(copied.root), seen) is None


@pytest.mark.parametrize("end", [b'"annotations": [', b"nobody", b"Picture"])
def test_captions_that_end_early_are_damage(copied: Any, seen: list[int], end: bytes) -> None:
    path = captions_file(copied, "train2017")
    data = path.read_bytes()
    path.write_bytes(data[: data.index(end) + len(end)])
    with pytest.raises(
        DamageError, match=r"captions_train2017.json is damaged: it ends within its annotations"
    ):
        read_captions(NsdLayout(copied.root), seen)


def test_captions_that_are_none_are_damage(copied: Any, seen: list[int]) -> None:
    path = captions_file(copied, "train2017")
    path.write_text('{"images": []}')
    with pytest.raises(DamageError, match="holds no list of annotations"):
        read_captions(NsdLayout(copied.root), seen)
    path.write_bytes(b'{"annotations": [{"image_id": 1, "caption": "\xff"}]}')
    with pytest.raises(DamageError, match=r"captions_train2017.json is damaged"):
        read_captions(NsdLayout(copied.root), seen)
    path.write_text('{"annotations": [1]}')
    with pytest.raises(DamageError, match="an annotation is no object"):
        read_captions(NsdLayout(copied.root), seen)


def test_a_table_without_a_column_or_a_picture_is_damage(copied: Any, seen: list[int]) -> None:
    layout = NsdLayout(copied.root)
    copied.write_table(seen[1:])
    with pytest.raises(DamageError, match=rf"has no row for picture {seen[0]} \(1 are missing\)"):
        read_captions(layout, seen)
    text = layout.stimulus_table.read_text()
    layout.stimulus_table.write_text(text.replace("cocoSplit", "split"))
    with pytest.raises(DamageError, match=r"has no column 'cocoSplit', only .*cocoId"):
        read_captions(layout, seen)
    layout.stimulus_table.write_text(text + "73001,what,train2017,,0,x,False,False\n")
    with pytest.raises(DamageError, match="is damaged after"):
        read_captions(layout, seen)
