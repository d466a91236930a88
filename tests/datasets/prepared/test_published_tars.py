"""Published tars are walked header by header; whatever is wrong with one is named, and nothing is believed."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset

from fmri2img.datasets.prepared.published_tars import numbered_tars, read_samples
from fmri2img.errors import DamageError, InputError


@pytest.fixture
def tar(tmp_path: Path) -> Path:
    """Two samples, as the library writes them: with a date to the microsecond in an extended header each."""
    path = tmp_path / "0.tar"
    with webdataset.TarWriter(str(path)) as writer:
        for key in ("a", "b"):
            writer.write({"__key__": key, "x.npy": np.arange(3.0), "big.npy": np.zeros(2000)})
    return path


def test_members_are_found_by_sample(tar: Path) -> None:
    samples = read_samples(tar)
    assert [sample.key for sample in samples] == ["a", "b"]
    assert all(sample.array("x.npy").tolist() == [0, 1, 2] for sample in samples)
    assert samples[1].array("big.npy").shape == (2000,)


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_dialect_of_tar_is_read_and_folders_passed_over(tmp_path: Path, kind: int) -> None:
    key = "folder/" + ("sample" if kind == tarfile.USTAR_FORMAT else "s" * 150)
    with tarfile.open(tmp_path / "0.tar", "w", format=kind) as tar:
        folder = tarfile.TarInfo("folder")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        member = tarfile.TarInfo(f"{key}.txt")
        member.size = 3
        tar.addfile(member, io.BytesIO(b"abc"))
    (sample,) = read_samples(tmp_path / "0.tar")
    assert (sample.key, sample.read("txt")) == (key.removeprefix("folder/"), b"abc")


def test_a_tar_cut_anywhere_is_named(tar: Path) -> None:
    data = tar.read_bytes()
    end = max(place for place in range(0, len(data), 512) if any(data[place : place + 512])) + 512
    for size in (0, 100, 512, 1024, 3000, end - 512, end, end + 511):
        tar.write_bytes(data[:size])
        with pytest.raises(DamageError, match=r"0\.tar: .*(cut|announces)"):
            read_samples(tar)
    tar.write_bytes(data[: end + 512])  # one empty block is an end
    assert len(read_samples(tar)) == 2


def test_a_flipped_bit_in_any_header_is_named(tar: Path) -> None:
    data = tar.read_bytes()
    headers = [place for place in range(0, len(data), 512) if data[place + 257 : place + 262] == b"ustar"]
    assert len(headers) == 8
    for place in headers:
        damaged = bytearray(data)
        damaged[place + 3] ^= 1
        tar.write_bytes(damaged)
        with pytest.raises(DamageError, match=f"the header at byte {place} is damaged"):
            read_samples(tar)


def test_members_there_twice_or_without_an_ending_are_named(tmp_path: Path) -> None:
    for names, said in (
        (["a.x", "a.y", "a.x"], "member a.x is there twice"),
        (["ab"], "member ab has no file ending"),
    ):
        with tarfile.open(tmp_path / "0.tar", "w") as tar:
            for name in names:
                tar.addfile(tarfile.TarInfo(name))
        with pytest.raises(DamageError, match=said):
            read_samples(tmp_path / "0.tar")


def test_sizes_are_never_believed(tmp_path: Path) -> None:
    member = tarfile.TarInfo("a.npy")
    member.size = 1 << 40
    (tmp_path / "0.tar").write_bytes(member.tobuf(tarfile.GNU_FORMAT) + bytes(2048))
    with pytest.raises(DamageError, match=f"announces {1 << 40} bytes of a.npy"):
        read_samples(tmp_path / "0.tar")
    extended = tarfile.TarInfo("a")
    extended.type, extended.size = tarfile.XHDTYPE, 12
    (tmp_path / "0.tar").write_bytes(extended.tobuf() + b"99 path=a.b\n".ljust(512, b"\0") + bytes(1024))
    with pytest.raises(DamageError, match="an extended header is damaged"):
        read_samples(tmp_path / "0.tar")


def test_pickles_are_never_loaded(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.array([{}], dtype=object), allow_pickle=True)
    with webdataset.TarWriter(str(tmp_path / "0.tar"), encoder=False) as writer:
        writer.write({"__key__": "a", "x.npy": buffer.getvalue(), "n.npy": b"\x80\x04."})
    (sample,) = read_samples(tmp_path / "0.tar")
    with pytest.raises(DamageError, match=r"a\.x\.npy: it holds Python objects, which are never loaded"):
        sample.array("x.npy")
    with pytest.raises(DamageError, match=r"a\.n\.npy: it does not begin with a .npy header"):
        sample.array("n.npy")


def test_gaps_in_a_row_of_tars_are_named(tmp_path: Path) -> None:
    for number in (0, 1, 3, 10):
        (tmp_path / f"t_{number}.tar").touch()
    with pytest.raises(
        InputError, match=r"lacks t_2\.tar, t_4\.tar, t_5\.tar, t_6\.tar, t_7\.tar and 2 more: fetch"
    ):
        numbered_tars(tmp_path, "t_{}.tar")
    assert numbered_tars(tmp_path, "t_{}.tar", count=2) == [tmp_path / "t_0.tar", tmp_path / "t_1.tar"]
    with pytest.raises(InputError, match=r"nowhere lacks t_0\.tar: fetch"):
        numbered_tars(tmp_path / "nowhere", "t_{}.tar")
