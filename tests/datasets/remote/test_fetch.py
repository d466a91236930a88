"""Fetching a source: what is listed, what is brought, what a second run does, and what is refused."""

import hashlib
import io
import json
import os
import zipfile
from collections import namedtuple
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fmri2img.datasets.fetch import RECORD, bytes_to_fetch, fetch, free_bytes
from fmri2img.datasets.fetch_link import Link
from fmri2img.datasets.fetch_listing import Remote, digests_expected, list_files
from fmri2img.datasets.fetch_sources import MINDEYE2, NSD, SOURCES, Wanted, wanted
from fmri2img.errors import DamageError, InputError, StoppedError

Usage = namedtuple("Usage", "total used free")
BETAS = "nsddata_betas/ppdata/subj01/func1pt8mm/betas_fithrf_GLMdenoise_RR"


@pytest.fixture
def release(server: Any) -> Any:
    """A bucket with some of a release's files."""
    generator = np.random.default_rng(5)
    names = [f"{BETAS}/betas_session{n:02d}.hdf5" for n in (1, 2, 3)]
    names += [f"{BETAS}/betas_session01.nii.gz", f"{BETAS}/ncsnr.nii.gz"]
    names += ["nsddata/experiments/nsd/nsd_expdesign.mat", "nsddata/experiments/nsd/nsd_stim_info_merged.csv"]
    names += ["nsddata/ppdata/subj01/behav/responses.tsv", "nsddata_stimuli/stimuli/nsd/nsd_stimuli.hdf5"]
    for name in names:
        server.files[f"nsd/{name}"] = generator.bytes(int(generator.integers(1500, 4000)))
    server.files[f"nsd/{BETAS}/betas_session02.hdf5"] = generator.bytes(9000)
    server.multipart.add(f"nsd/{BETAS}/betas_session02.hdf5")
    return server


def listed(link: Link, *parts: str, sessions: int | None = None) -> list[Remote]:
    chosen = wanted(NSD, subjects=["subj01"], parts=parts, mirror="s3://nsd/")
    return list_files(chosen, link, sessions)


def test_a_part_is_listed_with_sizes_and_checksums(release: Any, s3_link: Link) -> None:
    files = {file.file: file for file in listed(s3_link, "betas", "design")}
    assert sorted(files) == sorted(
        [f"{BETAS}/betas_session{n:02d}.hdf5" for n in (1, 2, 3)]
        + [f"{BETAS}/ncsnr.nii.gz", "nsddata/ppdata/subj01/behav/responses.tsv"]
        + [f"nsddata/experiments/nsd/nsd_{name}" for name in ("expdesign.mat", "stim_info_merged.csv")]
    )
    for name, file in files.items():
        data = release.files[f"nsd/{name}"]
        assert (file.url, file.bytes) == (f"s3://nsd/{name}", len(data))
        md5 = hashlib.md5(data, usedforsecurity=False).hexdigest()
        parts = name.endswith("session02.hdf5")
        assert file.announced == ((("s3-etag", release.etag(file.url[5:])[1:-1]) if parts else ("md5", md5)),)
        expected = digests_expected(file, s3_link)
        assert expected == ({"s3-etag:4000": file.announced[0][1]} if parts else {"md5": md5})


def test_the_first_sessions_alone_can_be_listed(release: Any, s3_link: Link) -> None:
    files = [file.file for file in listed(s3_link, "betas", sessions=2)]
    assert files == [
        f"{BETAS}/betas_session01.hdf5",
        f"{BETAS}/betas_session02.hdf5",
        f"{BETAS}/ncsnr.nii.gz",
    ]


def test_a_part_that_is_not_there_is_named(release: Any, s3_link: Link) -> None:
    with pytest.raises(
        InputError, match=r"s3://nsd has no file nsddata/ppdata/subj01/func1pt8mm/roi/\*.nii.gz: leave"
    ):
        listed(s3_link, "rois")
    del release.files["nsd/nsddata_stimuli/stimuli/nsd/nsd_stimuli.hdf5"]
    with pytest.raises(InputError, match=r"nsd_stimuli.hdf5 does not exist"):
        listed(s3_link, "stimuli")


def test_files_on_a_web_server_are_named_not_listed(release: Any, link: Link) -> None:
    files = list_files(wanted(NSD, parts=["stimuli"], mirror=release.url("nsd")), link)
    assert [file.bytes for file in files] == [
        len(release.files["nsd/nsddata_stimuli/stimuli/nsd/nsd_stimuli.hdf5"])
    ]
    with pytest.raises(InputError, match="cannot be listed: give an s3:// or hf:// address"):
        list_files(wanted(NSD, parts=["betas"], mirror=release.url("nsd")), link)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"subjects": ["subj09"]}, "'subj09' is no subject of nsd: use subj01, "),
        ({"parts": ["beta"]}, "'beta' is no part of nsd: use design, rois, betas, "),
        ({"betas": "b4"}, "'b4' is no beta version of nsd: use b1, b2, b3"),
        ({"space": "MNI"}, "'MNI' is no space of nsd: use func1pt8mm, func1mm"),
    ],
)
def test_a_choice_that_is_none_is_refused(choice: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        wanted(NSD, **choice)


def test_every_source_says_what_it_consists_of() -> None:
    for source in SOURCES.values():
        chosen = wanted(source, parts=list(source.parts))
        assert {one.part for one in chosen} == set(source.parts)
        assert all("{" not in one.pattern for one in chosen)
    assert {one.part for one in wanted(NSD)} == {"design", "rois", "betas", "stimuli", "captions"}
    patterns = [one.pattern for one in wanted(MINDEYE2, subjects=["subj02"], parts=["betas"])]
    assert patterns == ["betas_all_subj02_fp32_renorm.hdf5"]


def test_files_are_brought_and_put_down_with_their_sha256(
    release: Any, s3_link: Link, tmp_path: Path
) -> None:
    files, told = listed(s3_link, "betas", "design"), list[tuple[int, int]]()
    assert fetch(files, tmp_path, link=s3_link, tell=lambda done, total: told.append((done, total))) == files
    total = sum(file.bytes for file in files)
    assert told[-1] == (total, total)
    assert all(one[0] <= other[0] for one, other in pairwise(told))
    rows = {row["file"]: row for row in map(json.loads, (tmp_path / RECORD).read_text().splitlines())}
    for file in files:
        data = (tmp_path / file.file).read_bytes()
        assert data == release.files[f"nsd/{file.file}"]
        assert rows[file.file]["sha256"] == hashlib.sha256(data).hexdigest()
    assert list(tmp_path.rglob("*.part")) == []


def test_a_second_run_asks_for_no_byte_and_reads_none(
    release: Any, s3_link: Link, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = listed(s3_link, "betas")
    fetch(files, tmp_path, link=s3_link)
    before = len(release.requests)
    with monkeypatch.context() as patch:
        patch.setattr("fmri2img.datasets.fetch.digests_of", lambda *_: pytest.fail("read again"))
        assert fetch(files, tmp_path, link=s3_link) == []
    assert len(release.requests) == before
    assert fetch(files, tmp_path, link=s3_link, reread=True) == []
    assert all(request.method == "HEAD" for request in release.requests[before:])


def test_a_file_that_was_spoilt_or_cut_or_lost_is_brought_again(
    release: Any, s3_link: Link, tmp_path: Path
) -> None:
    files = listed(s3_link, "betas")
    fetch(files, tmp_path, link=s3_link)
    one, two, three, four = (tmp_path / file.file for file in files)
    data = bytearray(one.read_bytes())
    data[7] ^= 1
    one.write_bytes(data)
    two.write_bytes(two.read_bytes()[:-1] + b"?")
    os.utime(two, (1, 1))
    os.truncate(three, 10)
    four.unlink()
    assert fetch(files, tmp_path, link=s3_link) == files
    assert [(tmp_path / file.file).read_bytes() for file in files] == [
        release.files[f"nsd/{f.file}"] for f in files
    ]


def test_of_a_file_without_announced_digest_the_own_record_tells(
    release: Any, s3_link: Link, tmp_path: Path
) -> None:
    files = [replace(file, announced=()) for file in listed(s3_link, "stimuli")]
    fetch(files, tmp_path, link=s3_link)
    path = tmp_path / files[0].file
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    os.utime(path, (1, 1))
    assert fetch(files, tmp_path, link=s3_link) == files


def test_bytes_of_an_object_uploaded_in_parts_are_checked_too(
    release: Any, s3_link: Link, tmp_path: Path
) -> None:
    release.corrupt(f"nsd/{BETAS}/betas_session02.hdf5", at=8500, times=99)
    with pytest.raises(DamageError, match=r"betas_session02.hdf5: its s3-etag:4000 is [0-9a-f]{32}-3, but "):
        fetch(listed(s3_link, "betas"), tmp_path, link=s3_link)


def test_damage_that_kept_size_and_date_is_found_when_told_to_read(
    release: Any, s3_link: Link, tmp_path: Path
) -> None:
    files = listed(s3_link, "betas")
    fetch(files, tmp_path, link=s3_link)
    path = tmp_path / files[0].file
    stat, data = path.stat(), bytearray(path.read_bytes())
    data[7] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert fetch(files, tmp_path, link=s3_link) == []
    assert fetch(files, tmp_path, link=s3_link, reread=True) == [files[0]]


def test_files_that_came_another_way_are_taken_if_they_are_right(
    release: Any, s3_link: Link, tmp_path: Path
) -> None:
    files = listed(s3_link, "design")
    for file in files:
        (tmp_path / file.file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file.file).write_bytes(release.files[f"nsd/{file.file}"])
    (tmp_path / files[0].file).write_bytes(b"?" * files[0].bytes)
    assert fetch(files, tmp_path, link=s3_link) == [files[0]]


def test_a_dead_link_stops_and_the_same_call_goes_on(release: Any, s3_link: Link, tmp_path: Path) -> None:
    files = listed(s3_link, "betas")
    release.drop(f"nsd/{BETAS}/betas_session02.hdf5", at=6500, times=99)
    with pytest.raises(StoppedError, match=r"betas_session02.hdf5: the link failed 4 times"):
        fetch(files, tmp_path, link=s3_link, streams=2)
    release.faults.clear()
    before = release.sent(f"nsd/{BETAS}/betas_session02.hdf5")
    left = bytes_to_fetch([file for file in files if not (tmp_path / file.file).exists()], tmp_path)
    assert left < sum(file.bytes for file in files)
    fetch(files, tmp_path, link=s3_link)
    assert release.sent(f"nsd/{BETAS}/betas_session02.hdf5") - before == 3000
    assert all((tmp_path / file.file).read_bytes() == release.files[f"nsd/{file.file}"] for file in files)


def test_bytes_spoilt_on_the_way_are_fetched_again_and_stay_wrong_only_as_damage(
    release: Any, s3_link: Link, tmp_path: Path
) -> None:
    name = f"{BETAS}/betas_session01.hdf5"
    release.corrupt(f"nsd/{name}", at=500)
    fetch(listed(s3_link, "betas"), tmp_path, link=s3_link)
    assert (tmp_path / name).read_bytes() == release.files[f"nsd/{name}"]
    (tmp_path / name).unlink()
    release.corrupt(f"nsd/{name}", at=500, times=99)
    with pytest.raises(DamageError, match=rf"s3://nsd/{name}: its md5 is .* in each of 3 downloads"):
        fetch(listed(s3_link, "betas"), tmp_path, link=s3_link)
    assert not (tmp_path / name).exists()


def test_a_file_replaced_at_the_source_is_not_mixed_with_the_one_begun(
    release: Any, s3_link: Link, tmp_path: Path
) -> None:
    name = f"{BETAS}/ncsnr.nii.gz"
    release.drop(f"nsd/{name}", at=1200, times=99)
    with pytest.raises(StoppedError):
        fetch(listed(s3_link, "betas"), tmp_path, link=s3_link, streams=1)
    release.faults.clear()
    release.files[f"nsd/{name}"] = b"new" * 700
    fetch(listed(s3_link, "betas"), tmp_path, link=s3_link)
    assert (tmp_path / name).read_bytes() == b"new" * 700
    assert list(tmp_path.rglob("*.part")) == []


def test_a_disk_that_is_too_small_is_refused_before_a_byte_comes(
    release: Any, s3_link: Link, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = listed(s3_link, "betas")
    needed = sum(file.bytes for file in files)
    monkeypatch.setattr("fmri2img.datasets.fetch.free_bytes", lambda _: needed - 1)
    before = len(release.requests)
    with pytest.raises(
        InputError, match=rf"needs {needed} bytes more and its disk has {needed - 1} free: free 1, "
    ):
        fetch(files, tmp_path, link=s3_link)
    assert len(release.requests) == before
    assert free_bytes(tmp_path / "not" / "yet") > 0


def test_two_jobs_do_not_fetch_into_one_folder(release: Any, s3_link: Link, tmp_path: Path) -> None:
    refused: list[str] = []

    def tell(done: int, total: int) -> None:
        with pytest.raises(InputError, match="Another job is fetching into") as error:
            fetch(files, tmp_path, link=s3_link)
        refused.append(str(error.value))

    files = listed(s3_link, "stimuli")
    fetch(files, tmp_path, link=s3_link, tell=tell)
    assert refused


def test_members_of_a_zip_file_are_unpacked_beside_it(server: Any, link: Link, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("annotations/captions_train2017.json", '{"annotations": []}')
        archive.writestr("annotations/instances.json", "{}")
    server.files["coco/captions.zip"] = buffer.getvalue()
    want = Wanted(
        "captions", server.url("coco"), "captions.zip", "a/b", ("annotations/captions_train2017.json",)
    )
    files = list_files([want], link)
    fetch(files, tmp_path, link=link)
    assert sorted(path.name for path in (tmp_path / "a" / "b").iterdir()) == [
        "captions.zip",
        "captions_train2017.json",
    ]
    assert (tmp_path / "a/b/captions_train2017.json").read_text() == '{"annotations": []}'
    with pytest.raises(DamageError, match="cannot be unpacked"):
        fetch([replace(files[0], members=("annotations/none.json",))], tmp_path, link=link)


def test_a_record_line_cut_by_a_kill_is_passed_over(release: Any, s3_link: Link, tmp_path: Path) -> None:
    files = listed(s3_link, "design")
    fetch(files, tmp_path, link=s3_link)
    text = (tmp_path / RECORD).read_text()
    (tmp_path / RECORD).write_text(text[:-40])
    assert fetch(files, tmp_path, link=s3_link) == []
