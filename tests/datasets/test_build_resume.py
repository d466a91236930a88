"""A build that is killed leaves nothing that looks finished, and the same command goes on from what is done."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fmri2img.datasets import Dataset, NamedSplit, SessionTrials, build_dataset, verify
from fmri2img.datasets.journal import Workshop, read_journal, workshop_path
from fmri2img.errors import Fmri2imgError, InputError

# The child of a fork only reads and writes files, which no thread of the parent can hold up.
pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")


class Victim:
    """A process that builds a data set and kills itself the n-th time that it comes to a point."""

    def __init__(self, folder: Path, point: str, count: int) -> None:
        self.log, self.point, self.left = folder / "asked", point, count

    def reach(self, point: str) -> None:
        if point == self.point:
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    def ask(self, what: str) -> None:
        """Note what the source is asked for."""
        with open(self.log, "a") as file:
            file.write(f"{what}\n")
        self.reach(what.split()[0])

    def watch(self, owner: Any, name: str, point: str, *, after: bool = False) -> None:
        """Make a function a point, before it does its work or after."""
        real = getattr(owner, name)

        def watched(*given: Any, **named: Any) -> Any:
            if not after:
                self.reach(point)
            result = real(*given, **named)
            if after:
                self.reach(point)
            return result

        setattr(owner, name, watched)


@dataclass
class WatchedSubject:
    victim: Victim
    seed: int
    voxels: int
    sessions: tuple[int, ...] = (1, 2, 4)

    def voxel_table(self) -> dict[str, np.ndarray]:
        return {"depth": np.arange(self.voxels)}

    def session(self, session: int) -> SessionTrials:
        self.victim.ask(f"session {self.seed} {session}")
        generator = np.random.default_rng([self.seed, session])
        responses = generator.normal(session, 2, (14, self.voxels)).astype(np.float32)
        speed = np.where(generator.random(14) < 0.3, np.nan, generator.random(14))
        pictures = generator.permutation(np.arange(14) % 9)
        return SessionTrials(responses, pictures, np.arange(14) * 2 + 1, {"rt": speed})


class WatchedSource:
    name, terms, provenance = "watched", "free", {"release": "1"}

    def __init__(self, victim: Victim) -> None:
        self.victim = victim
        self.splits = {"early": NamedSplit("train", last_session={"subj01": 2})}
        self.subjects = {
            "subj01": WatchedSubject(victim, 1, 5),
            "subj02": WatchedSubject(victim, 2, 3, (1, 2)),
        }

    def picture(self, nsd_id: int) -> np.ndarray:
        self.victim.ask(f"picture {nsd_id}")
        return np.full((4, 5, 3), nsd_id, np.uint8)

    def captions(self, nsd_id: int) -> list[str]:
        return [f"picture {nsd_id}"]

    def is_test(self, subject: str, nsd_id: int, session: int) -> bool:
        return nsd_id < 2


POINTS = [
    *(("session", n) for n in (1, 3, 5)),
    *(("picture", n) for n in (1, 4, 9, 17)),
    *(("recorded", n) for n in (1, 2, 4, 6, 9, 13)),
    *(("replace", n) for n in (1, 2, 6, 11)),
    *(("fsync", n) for n in (1, 2, 7, 16, 30)),
    ("rename", 1),
]


def run(folder: Path, point: str = "never", count: int = 1) -> list[str]:
    """Build in a process of its own that kills itself at a point; returns what the source was asked."""
    log = folder / "asked"
    log.write_text("")
    process = os.fork()
    if process == 0:
        try:
            victim = Victim(folder, point, count)
            for owner, name in ((os, "fsync"), (os, "rename"), (os, "replace"), (shutil, "rmtree")):
                victim.watch(owner, name, name)
            victim.watch(Workshop, "record", "recorded", after=True)
            build_dataset(WatchedSource(victim), folder / "set", samples_per_shard=3)
            os._exit(0)
        finally:
            os._exit(1)
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    assert status in (0, -signal.SIGKILL)
    assert point != "never" or status == 0
    return log.read_text().splitlines()


def contents(root: Path) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, bytes], list[str]]:
    """The folder as built at one go, and what the source was asked for it."""
    folder = tmp_path_factory.mktemp("undisturbed")
    asked = run(folder)
    assert verify(folder / "set") == []
    return contents(folder / "set"), asked


@pytest.mark.parametrize(("point", "count"), POINTS, ids=lambda value: str(value))
def test_the_same_command_goes_on_after_sigkill(
    tmp_path: Path, undisturbed: tuple[dict[str, bytes], list[str]], point: str, count: int
) -> None:
    expected, asked_once = undisturbed
    before = run(tmp_path, point, count)
    assert not (tmp_path / "set").exists()
    left = workshop_path(tmp_path / "set")
    with pytest.raises(InputError, match=r"holds no dataset\.json, so it is no finished data set"):
        Dataset.open(left)
    done = {(r["kind"], r["name"]) for r in read_journal(left / "journal.jsonl")[0]}
    after = run(tmp_path)
    assert contents(tmp_path / "set") == expected
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []
    for what in set(asked_once):
        if what.startswith("session"):
            kind, seed, session = what.split()
            known = (kind, f"subj0{seed} {session}") in done
            assert before.count(what) + after.count(what) <= (1 if known else 2)
    shards = sum(kind == "shard" for kind, _ in done)
    pictures = sum(what.startswith("picture") for what in asked_once)
    assert sum(what.startswith("picture") for what in after) <= pictures - shards


def test_a_build_killed_after_the_renaming_is_finished(
    tmp_path: Path, undisturbed: tuple[dict[str, bytes], list[str]]
) -> None:
    run(tmp_path, "rmtree", 2)
    assert contents(tmp_path / "set") == undisturbed[0]
    assert workshop_path(tmp_path / "set").exists()
    assert run(tmp_path) == []
    assert not workshop_path(tmp_path / "set").exists()


def test_a_build_may_be_killed_again_and_again(
    tmp_path: Path, undisturbed: tuple[dict[str, bytes], list[str]]
) -> None:
    kills = 0
    while not (tmp_path / "set").exists() and kills < 10:
        run(tmp_path, "recorded", 4)
        kills += 1
    assert kills > 3
    assert contents(tmp_path / "set") == undisturbed[0]


def interrupted(source: Any, out: Path, at: int) -> Path:
    """Build until a picture cannot be read, as on a disk that goes away; returns the hidden folder."""

    def picture(nsd_id: int) -> np.ndarray:
        if nsd_id == at:
            raise OSError(errno.EIO, "Input/output error")
        return type(source).picture(source, nsd_id)

    source.picture = picture
    with pytest.raises(OSError, match="Input/output error"):
        build_dataset(source, out, samples_per_shard=2)
    return workshop_path(out)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"name": "tiny2"},
            'unfinished build with source "tiny", and this one has "tiny2": give the command as',
        ),
        ({"provenance": {"made": "now"}}, 'provenance.made "for tests", and this one has "now"'),
        ({"provenance": {}}, 'provenance.made "for tests", and this one has nothing'),
    ],
)
def test_another_build_of_the_folder_is_refused_by_what_differs(
    tmp_path: Path, make_source: Any, change: dict[str, Any], message: str
) -> None:
    left = interrupted(make_source(), tmp_path / "set", 5)
    with pytest.raises(InputError, match=message):
        build_dataset(make_source(**change), tmp_path / "set", samples_per_shard=2)
    with pytest.raises(
        InputError, match=r"samples_per_shard 2, and this one has 4: .* or remove that folder"
    ):
        build_dataset(make_source(), tmp_path / "set", samples_per_shard=4)
    assert left.exists(), "what was done is still there"
    build_dataset(make_source(), tmp_path / "set", samples_per_shard=2)


def test_as_many_voxels_of_another_mask_are_another_build(tmp_path: Path, make_source: Any) -> None:
    source = make_source()
    source.picture = lambda nsd_id: (_ for _ in ()).throw(OSError(errno.EIO, "gone"))
    with pytest.raises(OSError, match="gone"):
        build_dataset(source, tmp_path / "set")
    other = make_source()
    moved = {"roi": np.array(["V1"] * 5), "noise_ceiling": np.linspace(0, 1, 5)}
    other.subjects["subj01"].voxel_table = lambda: moved
    with pytest.raises(InputError, match=r"subj01\.voxel_table"):
        build_dataset(other, tmp_path / "set")


def test_a_build_that_did_nothing_yet_gives_way(tmp_path: Path, make_source: Any) -> None:
    source = make_source()
    source.subjects["subj01"].edit = lambda *_: (_ for _ in ()).throw(OSError(errno.EIO, "gone"))
    with pytest.raises(OSError, match="gone"):
        build_dataset(source, tmp_path / "set")
    assert build_dataset(make_source(name="other"), tmp_path / "set").manifest.name == "other"


@pytest.mark.parametrize("harm", ["spill", "session", "shard", "journal"])
def test_work_that_was_damaged_since_is_done_again(tmp_path: Path, make_source: Any, harm: str) -> None:
    left = interrupted(make_source(), tmp_path / "set", 5)
    path = {
        "spill": left / "subj01.spill",
        "session": left / "subj01.session-00002.npz",
        "shard": next(left.glob("data/subj01/train-00000.responses.tar")),
        "journal": left / "journal.jsonl",
    }[harm]
    data = bytearray(path.read_bytes())
    if harm == "shard":
        del data[-512:]
    else:
        data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    build_dataset(make_source(), tmp_path / "set", samples_per_shard=2)
    build_dataset(make_source(), tmp_path / "whole", samples_per_shard=2)
    assert contents(tmp_path / "set") == contents(tmp_path / "whole")


def test_two_builds_of_one_folder_at_once_are_refused(tmp_path: Path, make_source: Any) -> None:
    source = make_source()

    def meanwhile(nsd_id: int) -> np.ndarray:
        with pytest.raises(
            InputError, match=r"Another build of .* is running, and two cannot build one folder"
        ):
            build_dataset(make_source(), tmp_path / "set")
        return make_source().picture(nsd_id)

    source.picture = meanwhile
    assert verify(build_dataset(source, tmp_path / "set").path) == []


@pytest.mark.parametrize("where", ["spill.os.pwrite", "journal.os.write", "writer.os.fsync"])
def test_a_full_disk_is_one_clear_error_and_the_command_goes_on(
    tmp_path: Path, make_source: Any, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    calls = []

    def full(*arguments: Any) -> int:
        calls.append(arguments)
        if len(calls) > 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*arguments)

    real = getattr(os, where.split(".")[-1])
    with monkeypatch.context() as patch:
        patch.setattr(f"fmri2img.datasets.{where}", full)
        with pytest.raises(Fmri2imgError, match=r"No space is left for .* give the same command") as told:
            build_dataset(make_source(), tmp_path / "set")
        assert str(workshop_path(tmp_path / "set")) in str(told.value)
    assert not (tmp_path / "set").exists()
    dataset = build_dataset(make_source(), tmp_path / "set")
    assert contents(dataset.path) == contents(build_dataset(make_source(), tmp_path / "whole").path)


def test_a_line_of_the_journal_that_did_not_fit_counts_as_not_done(
    tmp_path: Path, make_source: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = []

    def nearly_full(descriptor: int, data: memoryview) -> int:
        lines.append(len(data))
        if len(lines) > 5:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor, data[:20] if len(lines) == 5 else data)

    real = os.write
    with monkeypatch.context() as patch:
        patch.setattr("fmri2img.datasets.journal.os.write", nearly_full)
        with pytest.raises(Fmri2imgError, match="No space is left for"):
            build_dataset(make_source(), tmp_path / "set")
    journal = workshop_path(tmp_path / "set") / "journal.jsonl"
    assert journal.read_bytes().count(b"\n") == 4
    assert lines[5] == lines[4] - 20
    build_dataset(make_source(), tmp_path / "set")
    assert contents(tmp_path / "set") == contents(build_dataset(make_source(), tmp_path / "whole").path)


def test_a_limit_of_the_file_size_is_told_like_a_full_disk(tmp_path: Path, make_source: Any) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (700, before[1]))
    try:
        with pytest.raises(Fmri2imgError, match=r"No space is left for .* \(File too large\)"):
            build_dataset(make_source(), tmp_path / "set")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not (tmp_path / "set").exists()
    assert verify(build_dataset(make_source(), tmp_path / "set").path) == []


def test_a_journal_is_read_up_to_its_first_bad_line(tmp_path: Path, make_source: Any) -> None:
    path = interrupted(make_source(), tmp_path / "set", 5) / "journal.jsonl"
    whole = path.read_bytes()
    records, good = read_journal(path)
    assert good == len(whole)
    lines = whole.splitlines(keepends=True)
    for cut in (1, 5, len(lines[-1]) - 1):
        path.write_bytes(whole[:-cut])
        assert read_journal(path) == (records[:-1], good - len(lines[-1]))
    lines[1] = lines[1].replace(b"subj01", b"subj02")
    path.write_bytes(b"".join(lines))
    assert read_journal(path)[0] == records[:1]
    assert json.loads(lines[0])[1]["identity"]["source"] == '"tiny"'
