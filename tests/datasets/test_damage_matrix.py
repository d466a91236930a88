"""Every kind of damage in every region of every column: `verify` names file, key and rule, and so does reading.

Reading goes to a payload by the index's offset and trusts no tar header. So it neither sees nor needs headers,
filling and the blocks at the end: damage there alters no value that is read, and `verify` alone tells of it.
"""

from __future__ import annotations

import io
import shutil
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fmri2img.datasets import Dataset, add_feature_space, verify
from fmri2img.datasets.manifest import read_manifest, seal, write_manifest
from fmri2img.errors import DamageError

SHARD = "subj01/train-00000"
COLUMNS = ("responses", "stimuli", "tone")
HEADER = {
    "name": (0, 99),
    "mode, owner and date": (100, 123),
    "size": (124, 135),
    "checksum": (148, 153),
    "type": (156, 156),
    "magic": (257, 261),
    "rest": (400, 511),
}


@pytest.fixture(scope="session")
def built_toned(tmp_path_factory: pytest.TempPathFactory, built: Path) -> Path:
    """`built` with a feature space of vectors, not to be changed."""
    folder = tmp_path_factory.mktemp("toned") / "tiny"
    shutil.copytree(built, folder)
    add_feature_space(
        folder,
        name="tone",
        shape=(3,),
        dtype="bfloat16",
        extractor={},
        compute=lambda pictures, _: np.stack([picture.mean((0, 1)) for picture in pictures]),
    )
    return folder


@pytest.fixture
def toned(tiny: Dataset, built_toned: Path) -> Dataset:
    """A copy of it that a test may change, where `damage` works."""
    shutil.rmtree(tiny.path)
    shutil.copytree(built_toned, tiny.path)
    return Dataset.open(tiny.path)


def members(path: Path) -> list[tarfile.TarInfo]:
    with tarfile.open(path) as tar:
        return tar.getmembers()


def each_flip(path: Path, positions: Iterator[tuple[str, int]]) -> Iterator[str]:
    """Yields what stands with each position while the byte there is flipped."""
    sound = path.read_bytes()
    for told, position in positions:
        data = bytearray(sound)
        data[position] ^= 0xFF
        path.write_bytes(data)
        yield told
    path.write_bytes(sound)


def values(dataset: Dataset) -> list[bytes]:
    """Everything of the first shard, as a fresh reader gives it."""
    dataset = Dataset.open(dataset.path)
    samples, read = dataset.shard_samples(0), list[np.ndarray]()
    for i in range(len(samples)):
        read += [
            dataset.responses(samples, i),
            dataset.picture(samples, i),
            dataset.feature(samples, i, "tone"),
        ]
    return [value.tobytes() for value in read]


@pytest.mark.parametrize("column", COLUMNS)
@pytest.mark.parametrize("region", HEADER)
def test_a_flipped_header_byte_is_named_by_verify_and_changes_no_value_read(
    toned: Dataset, column: str, region: str
) -> None:
    file = f"{SHARD}.{column}.tar"
    first, last = HEADER[region]
    places = [
        (member.name.split(".")[0], member.offset + at)
        for member in members(toned.path / file)
        for at in {first, last}
    ]
    sound = values(toned)
    for key in each_flip(toned.path / file, iter(places)):
        told = [(p.file, p.key) for p in verify(toned.path) if "header" in p.rule]
        assert told == [(file, key)]
        assert values(toned) == sound


@pytest.mark.parametrize("column", COLUMNS)
def test_a_flipped_payload_byte_is_named_by_verify_and_by_reading(
    toned: Dataset, reading: Callable[[Path], None], column: str
) -> None:
    file = f"{SHARD}.{column}.tar"
    places = [
        (member.name.split(".")[0], member.offset_data + at)
        for member in members(toned.path / file)
        for at in (0, 7, member.size // 2, member.size - 1)
    ]
    for key in each_flip(toned.path / file, iter(places)):
        told = {(p.file, p.key) for p in verify(toned.path)}
        assert told == {(file, key), (file, None)}  # the member's crc32 and the tar's sha256
        with pytest.raises(DamageError, match=f"{file}: {key}: the crc32 of its bytes at offset"):
            reading(toned.path)


@pytest.mark.parametrize("column", COLUMNS)
def test_a_flipped_byte_of_filling_is_named_by_verify_and_changes_no_value_read(
    toned: Dataset, column: str
) -> None:
    file = f"{SHARD}.{column}.tar"
    held = members(toned.path / file)
    places = [
        (m.name, m.offset_data + m.size + at) for m in held for at in (0, -m.size % 512 - 1) if m.size % 512
    ]
    sound = values(toned)
    for name in each_flip(toned.path / file, iter(places)):
        rules = {(p.key, p.rule) for p in verify(toned.path)}
        assert rules == {
            (name.split(".")[0], f"the filling after {name} is not zeros"),
            (None, "its sha256 is not the manifest's"),
        }
        assert values(toned) == sound


@pytest.mark.parametrize("column", COLUMNS)
def test_a_flipped_byte_of_the_last_blocks_is_found_by_verify_and_changes_no_value_read(
    toned: Dataset, column: str
) -> None:
    file = f"{SHARD}.{column}.tar"
    size, last = (toned.path / file).stat().st_size, members(toned.path / file)[-1]
    end = last.offset_data + -(-last.size // 512) * 512
    places = [("", at) for at in (end, end + 511, end + 512, (end + size) // 2, size - 1)]
    sound = values(toned)
    for _ in each_flip(toned.path / file, iter(places)):
        assert {(p.file, p.rule) for p in verify(toned.path)} & {
            (file, "its sha256 is not the manifest's"),
            (file, "there are bytes after the end of the archive"),
        }
        assert values(toned) == sound


@pytest.mark.parametrize("column", COLUMNS)
def test_a_tar_cut_anywhere_is_named_by_verify_and_by_reading(
    toned: Dataset, reading: Callable[[Path], None], column: str
) -> None:
    file = f"{SHARD}.{column}.tar"
    path, sound = toned.path / file, (toned.path / file).read_bytes()
    for member in members(path):
        end = member.offset_data + -(-member.size // 512) * 512
        inside = (member.offset + 100, member.offset_data, member.offset_data + member.size // 2)
        for cut in (member.offset, *inside, end):
            path.write_bytes(sound[:cut])
            problems = verify(toned.path)
            assert f"{cut} bytes long, but the manifest says {len(sound)}" in {p.rule for p in problems}
            lost = {p.key for p in problems if "cannot be read to its end" in p.rule}
            later = [
                m.name.split(".")[0]
                for m in members_of(sound)
                if m.offset >= (cut if cut == end else member.offset)
            ]
            assert lost == ({later[0]} if later else {None})
            with pytest.raises(DamageError, match=f"{file}: {cut} bytes long, but the manifest says"):
                reading(toned.path)
    path.write_bytes(sound[:1024].ljust(len(sound), b"\0"))  # as a copy that died leaves it
    assert {p.file for p in verify(toned.path)} == {file}
    with pytest.raises(DamageError, match=f"{file}: subj01_nsd"):
        reading(toned.path)


def members_of(data: bytes) -> list[tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return tar.getmembers()


@pytest.mark.parametrize("column", COLUMNS)
def test_each_missing_member_is_named_by_verify_and_its_shard_by_reading(
    toned: Dataset, damage: Any, reading: Callable[[Path], None], column: str
) -> None:
    file = f"{SHARD}.{column}.tar"
    sound = (toned.path / file).read_bytes()
    for number, member in enumerate(members(toned.path / file)):
        damage.drop_member(file, number)
        missing = [(p.file, p.key, p.rule) for p in verify(toned.path) if "missing" in p.rule]
        assert missing == [(file, member.name.split(".")[0], f"member {member.name} is missing")]
        with pytest.raises(DamageError, match=f"{file}: subj01_nsd.*the crc32"):
            reading(toned.path)
        (toned.path / file).write_bytes(sound)


@pytest.mark.parametrize("column", COLUMNS)
def test_a_member_that_is_twice_in_a_tar_is_named_by_verify(toned: Dataset, damage: Any, column: str) -> None:
    """In the room at the end it moves nothing that is read; where the tar grows, reading finds its size."""
    file = f"{SHARD}.{column}.tar"
    size, name = (toned.path / file).stat().st_size, members(toned.path / file)[1].name
    sound = values(toned)
    damage.repeat_member(file, 1, size=size)
    rule = f"member {name} is not in the index, or twice in the tar"
    assert (file, name.split(".")[0], rule) in {(p.file, p.key, p.rule) for p in verify(toned.path)}
    assert values(toned) == sound
    (toned.path / file).write_bytes((toned.path / file).read_bytes() + bytes(10240))
    with pytest.raises(DamageError, match=f"{file}: {size + 10240} bytes long"):
        values(toned)


@pytest.mark.parametrize("ends", [["tar"], ["index.npz"], ["tar", "index.npz"]])
@pytest.mark.parametrize("column", COLUMNS)
def test_two_shards_that_changed_places_are_both_named(
    toned: Dataset, damage: Any, reading: Callable[[Path], None], column: str, ends: list[str]
) -> None:
    names = [SHARD, "subj01/train-00001"]
    for end in ends:
        damage.swap(f"{names[0]}.{column}.{end}", f"{names[1]}.{column}.{end}")
    told = {problem.file for problem in verify(toned.path)}
    assert {f"{name}.{column}.{end}" for name in names for end in ends} <= told
    with pytest.raises(DamageError, match=rf"{SHARD}\.{column}\.({'|'.join(ends)}): "):
        reading(toned.path)


def test_a_key_that_two_shards_hold_is_named_though_every_digest_is_right(tiny: Dataset) -> None:
    """What a faulty builder, not a faulty disk, would leave: the manifest is sealed over it."""
    manifest = read_manifest(tiny.path).model_dump()
    numbers = [n for n, s in enumerate(manifest["shards"]) if s["name"].startswith("subj01/train")]
    first, second = (manifest["shards"][n] for n in numbers)
    for name in ("samples", "trials"):
        second[name] = first[name]
    for column, entry in first["columns"].items():
        for part, target in (
            (entry, second["columns"][column]),
            (entry["index"], second["columns"][column]["index"]),
        ):
            (tiny.path / target["file"]).write_bytes((tiny.path / part["file"]).read_bytes())
            target["bytes"], target["sha256"] = part["bytes"], part["sha256"]
    write_manifest(tiny.path, seal(manifest))
    key = tiny.shard_samples(numbers[0]).keys[0]
    index = second["columns"]["responses"]["index"]["file"]
    rules = {(p.file, p.key): p.rule for p in verify(tiny.path)}
    assert "comes after" in rules[index, key] or "the same key is in" in rules[index, key]
    with pytest.raises(DamageError, match=f"{index}: {key}: comes after .* each once"):
        Dataset.open(tiny.path).samples("subj01", "train")


@pytest.mark.parametrize("column", COLUMNS)
def test_a_damaged_index_is_named_by_verify_and_by_reading(
    toned: Dataset, reading: Callable[[Path], None], column: str
) -> None:
    file = f"{SHARD}.{column}.index.npz"
    size = (toned.path / file).stat().st_size
    places = np.linspace(0, size - 1, 12).astype(int).tolist()
    for _ in each_flip(toned.path / file, iter([("", at) for at in places])):
        assert (file, "its sha256 is not the manifest's") in {(p.file, p.rule) for p in verify(toned.path)}
        with pytest.raises(DamageError, match=f"{file}: its sha256 is not the manifest's"):
            reading(toned.path)


def test_a_flipped_byte_of_the_manifest_is_named_by_verify_and_by_opening(toned: Dataset) -> None:
    path = toned.path / "dataset.json"
    places = np.random.default_rng(0).choice(path.stat().st_size, 60, replace=False).tolist()
    for _ in each_flip(path, iter([("", at) for at in places])):
        assert [p.file for p in verify(toned.path)] == ["dataset.json"]
        with pytest.raises(DamageError, match=r"dataset\.json is damaged: "):
            Dataset.open(toned.path)


@pytest.mark.parametrize("file", ["subj01/train-00007.tone.tar", "train-00000.tar", "subj01/x.tar"])
def test_a_stray_shard_is_named_by_verify_and_by_opening(toned: Dataset, damage: Any, file: str) -> None:
    damage.copy(f"{SHARD}.tone.tar", file)
    assert [problem.file for problem in verify(toned.path)] == [file]
    with pytest.raises(DamageError, match=f"{file}: this shard is not in the manifest"):
        Dataset.open(toned.path)
