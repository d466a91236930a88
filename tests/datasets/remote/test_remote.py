"""A data set at an address reads as it does from a folder, and fetches what it reads once."""

import multiprocessing
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import fsspec.config
import numpy as np
import pytest

from fmri2img.cli import run
from fmri2img.datasets import Dataset, SamplingPlan, add_feature_space
from fmri2img.datasets.cache import FileCache
from fmri2img.datasets.fetch_link import Link
from fmri2img.datasets.manifest import MANIFEST
from fmri2img.datasets.remote import Address, RemoteDataset, absolute, address_of, open_remote
from fmri2img.errors import DamageError, InputError, StoppedError

BIG = 10**8


@pytest.fixture(scope="module")
def folder(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny data set, with a feature space."""
    path = tmp_path_factory.mktemp("remote") / "tiny"
    shutil.copytree(built, path)
    add_feature_space(
        path,
        name="means",
        shape=[3],
        dtype="float32",
        extractor={"kind": "mean"},
        compute=lambda pictures, captions: np.stack([p.mean((0, 1)) for p in pictures]),
    )
    return path


@pytest.fixture
def published(server: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr("fmri2img.datasets.remote._pinned", {})
    server.publish(folder, "bucket/tiny")
    return server


@pytest.fixture(params=["http", "s3"])
def remote(
    request: pytest.FixtureRequest, published: Any, link: Link, s3_link: Link, tmp_path: Path
) -> RemoteDataset:
    if request.param == "http":
        return open_remote(published.url("bucket/tiny"), tmp_path, BIG, link=link)
    return open_remote("s3://bucket/tiny", tmp_path, BIG, link=s3_link)


def batches(dataset: Dataset) -> list[np.ndarray]:
    """What two epochs of training read."""
    tables = {subject: dataset.samples(subject, "train") for subject in dataset.subjects}
    plan = SamplingPlan(tables, fingerprint=dataset.fingerprint, seed=3, global_batch=4, lanes=2)
    out = []
    for step in range(2 * plan.steps_per_epoch):
        for subject, (rows, repeats) in plan.rank_rows(step, 0, 1).items():
            out.append(dataset.read_trials(tables[subject], rows, repeats))
            out.append(dataset.read_features(tables[subject], rows, "means"))
    return out


def shard_files(dataset: Dataset, column: str) -> list[str]:
    return [shard.columns[column].file for shard in dataset.manifest.shards]


def test_training_reads_the_same_values_as_from_the_folder(
    remote: RemoteDataset, folder: Path, published: Any
) -> None:
    local = Dataset.open(folder)
    for here, there in zip(batches(local), batches(remote), strict=True):
        np.testing.assert_array_equal(here, there)
    for subject in local.subjects:
        for name, array in local.voxel_table(subject).items():
            np.testing.assert_array_equal(array, remote.voxel_table(subject)[name])
    training = [shard for shard in local.manifest.shards if shard.partition == "train"]
    for shard in training:
        assert (
            published.sent(f"bucket/tiny/{shard.columns['responses'].file}")
            == shard.columns["responses"].bytes
        )
    assert not any("stimuli" in request.path for request in published.requests)
    assert not any("test-" in request.path for request in published.requests if request.path.endswith(".tar"))


def test_pictures_and_captions_are_fetched_when_asked_for(remote: RemoteDataset, folder: Path) -> None:
    local = Dataset.open(folder)
    samples = local.samples("subj01", "test")
    np.testing.assert_array_equal(local.picture(samples, 0), remote.picture(samples, 0))
    assert local.captions(samples, 0) == remote.captions(samples, 0)
    assert remote.feature_statistics("means")[0].shape == (3,)


def test_an_address_opens_like_a_folder(
    published: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FMRI2IMG_CACHE", str(tmp_path))
    monkeypatch.setenv("FMRI2IMG_CACHE_BYTES", str(BIG))
    dataset = Dataset.open(published.url("bucket/tiny/"))
    assert str(dataset.path) == published.url("bucket/tiny")
    assert len(dataset.samples("subj01", "train"))
    settings = {
        "anon": True,
        "endpoint_url": published.address,
        "client_kwargs": {"region_name": "us-east-1"},
    }
    monkeypatch.setitem(fsspec.config.conf, "s3", settings)
    assert Dataset.open("s3://bucket/tiny").fingerprint == dataset.fingerprint


def test_commands_take_addresses(
    published: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FMRI2IMG_CACHE", str(tmp_path))
    monkeypatch.setenv("FMRI2IMG_CACHE_BYTES", str(BIG))
    assert run(["data", "info", published.url("bucket/tiny")]) == 0
    assert f"path: {published.url('bucket/tiny')}\n" in capsys.readouterr().out
    assert run(["data", "info", published.url("bucket/none")]) == 2
    assert "is no data set that can be read" in capsys.readouterr().err


def test_a_path_that_was_an_address_is_known_again() -> None:
    assert address_of("s3://bucket/set/") == "s3://bucket/set"
    assert address_of(Path("https://host/a/set")) == "https://host/a/set"
    assert address_of(Path("/data/set")) is None
    assert address_of("ftp://host/set") is None
    address = Address("hf://datasets/somebody/set")
    assert str(address) == "hf://datasets/somebody/set"
    assert str(address / "subj01/a.tar") == "hf://datasets/somebody/set/subj01/a.tar"
    assert pickle.loads(pickle.dumps(address)) == address
    assert str(absolute(Path("s3://bucket/set"))) == "s3://bucket/set"
    assert absolute("set") == Path.cwd() / "set"


def test_the_second_process_reads_from_the_cache(remote: RemoteDataset, published: Any) -> None:
    first = batches(remote)
    published.dead = True
    again = pickle.loads(pickle.dumps(remote))
    for one, other in zip(first, batches(again), strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_manifest_holds_for_the_process(remote: RemoteDataset, published: Any, tmp_path: Path) -> None:
    published.files[f"bucket/tiny/{MANIFEST}"] = b"another"
    again = open_remote(remote.remote.url, tmp_path, BIG, link=remote.remote.link)
    assert again.fingerprint == remote.fingerprint


def test_a_shard_that_stays_damaged_is_named(remote: RemoteDataset, published: Any) -> None:
    samples = remote.samples("subj01", "train")
    file = remote.manifest.shards[int(samples.shard[0])].columns["responses"].file
    published.corrupt(f"bucket/tiny/{file}", at=700, times=99)
    with pytest.raises(DamageError, match=rf"bucket/tiny/{file}: its sha256 is .* in each of 3 downloads"):
        remote.responses(samples, 0)


def test_a_shard_that_is_missing_is_named(remote: RemoteDataset, published: Any) -> None:
    samples = remote.samples("subj01", "train")
    file = remote.manifest.shards[int(samples.shard[0])].columns["responses"].file
    del published.files[f"bucket/tiny/{file}"]
    with pytest.raises(DamageError, match=rf"{remote.path}/{file}: the file is missing. Bring the file back"):
        remote.responses(samples, 0)


def test_a_shard_spoilt_on_the_way_is_fetched_again(
    remote: RemoteDataset, folder: Path, published: Any
) -> None:
    samples = remote.samples("subj01", "train")
    file = remote.manifest.shards[int(samples.shard[0])].columns["responses"].file
    published.corrupt(f"bucket/tiny/{file}", at=700)
    expected = Dataset.open(folder).responses(samples, 0)
    np.testing.assert_array_equal(remote.responses(samples, 0), expected)


def test_a_copy_damaged_in_the_cache_is_thrown_away_and_fetched_anew(
    remote: RemoteDataset, folder: Path
) -> None:
    samples = remote.samples("subj01", "train")
    expected = remote.responses(samples, 0)
    entry = remote.manifest.shards[int(samples.shard[0])].columns["responses"]
    path = remote.remote.cache.folder / "files" / entry.sha256
    path.write_bytes(bytes(byte ^ 1 for byte in path.read_bytes()))
    other = pickle.loads(pickle.dumps(remote))
    with pytest.raises(
        DamageError, match=rf"this machine's copy of {remote.path}/{entry.file}, was damaged since"
    ):
        other.responses(samples, 0)
    again = pickle.loads(pickle.dumps(remote))
    np.testing.assert_array_equal(again.responses(samples, 0), expected)


def test_what_made_room_is_closed_so_that_the_disk_gets_it_back(
    remote: RemoteDataset, tmp_path: Path
) -> None:
    remote.remote.cache = FileCache(tmp_path / "small", 15_000, grace=0.0)
    for subject in remote.subjects:
        samples = remote.samples(subject, "train")
        for i in range(len(samples)):
            remote.responses(samples, i)
            remote.feature(samples, i, "means")
    opened = [os.path.realpath(path) for path in Path("/proc/self/fd").iterdir()]
    gone = [path for path in opened if path.startswith(str(tmp_path)) and path.endswith("(deleted)")]
    assert len(gone) <= 1
    assert remote.remote.cache.used() <= 15_000


@pytest.mark.filterwarnings(
    "ignore:.*multi-threaded.*fork:DeprecationWarning"
)  # Python 3.12 on: it is what is tried
def test_a_forked_worker_reads_on_its_own(remote: RemoteDataset, folder: Path, published: Any) -> None:
    samples = remote.samples("subj01", "train")
    remote.prefetch([0])
    assert remote.remote.wait(20)
    expected = Dataset.open(folder).read_features(samples, range(len(samples)), "means")

    def work(out: Any) -> None:
        remote.prefetch([1, 2])
        out.send_bytes(remote.read_features(samples, range(len(samples)), "means").tobytes())
        remote.remote.wait(20)

    here, there = multiprocessing.Pipe()
    worker = multiprocessing.get_context("fork").Process(target=work, args=(there,))
    worker.start()
    assert here.poll(30)
    assert here.recv_bytes() == expected.tobytes()
    worker.join(30)
    assert worker.exitcode == 0


def test_a_link_that_dies_in_an_epoch_is_one_sentence_and_the_next_run_goes_on(
    remote: RemoteDataset, folder: Path, published: Any
) -> None:
    samples = remote.samples("subj01", "train")
    published.dead = True
    with pytest.raises(StoppedError, match=r"the link failed 4 times in a row .* same command goes on"):
        remote.responses(samples, 0)
    published.dead = False
    np.testing.assert_array_equal(remote.responses(samples, 0), Dataset.open(folder).responses(samples, 0))


def test_a_damaged_manifest_is_named_by_its_address(published: Any, tmp_path: Path, link: Link) -> None:
    manifest = published.files[f"bucket/tiny/{MANIFEST}"]
    published.files[f"bucket/tiny/{MANIFEST}"] = manifest.replace(b'"terms": "free"', b'"terms": "fees"')
    with pytest.raises(DamageError, match=rf"http://.*/bucket/tiny/{MANIFEST} is damaged: its digest is not"):
        open_remote(published.url("bucket/tiny"), tmp_path, BIG, link=link)


def test_an_address_without_a_data_set_is_refused(published: Any, tmp_path: Path, link: Link) -> None:
    with pytest.raises(InputError, match="bucket/none is no data set that can be read"):
        open_remote(published.url("bucket/none"), tmp_path, BIG, link=link)
    with pytest.raises(InputError, match="is no address of a data set"):
        open_remote("gopher://set", tmp_path, BIG)
    with pytest.raises(InputError, match="holds a user name or password") as told:
        open_remote("https://me:secret@host/set", tmp_path, BIG)
    assert "secret" not in str(told.value)


def test_a_stray_shard_is_found_where_files_can_be_listed(
    published: Any, tmp_path: Path, s3_link: Link
) -> None:
    published.files["bucket/tiny/subj01/train-00099.responses.tar"] = b"stray"
    with pytest.raises(
        DamageError, match=r"s3://bucket/tiny/subj01/train-00099.responses.tar: this shard is not in"
    ):
        open_remote("s3://bucket/tiny", tmp_path, BIG, link=s3_link)


def test_a_cache_too_small_for_the_largest_file_is_refused_at_once(
    published: Any, tmp_path: Path, link: Link
) -> None:
    with pytest.raises(
        InputError, match=r"too few for the largest file of http.*: raise FMRI2IMG_CACHE_BYTES"
    ):
        open_remote(published.url("bucket/tiny"), tmp_path, 5000, link=link)


def test_prefetching_brings_shards_before_they_are_read(remote: RemoteDataset, published: Any) -> None:
    remote.prefetch(range(3), columns=["responses", "means"])
    assert remote.remote.wait(20)
    published.dead = True
    for number in range(3):
        samples = remote.shard_samples(number)
        remote.responses(samples, 0)
        remote.feature(samples, 0, "means")
    with pytest.raises(StoppedError):
        remote.shard_samples(3)


def test_prefetching_fills_half_of_a_cache_that_cannot_hold_all(
    remote: RemoteDataset, tmp_path: Path
) -> None:
    shards = range(len(remote.manifest.shards))
    columns = [shard.columns["responses"] for shard in remote.manifest.shards]
    total = sum(column.bytes + column.index.bytes for column in columns)
    remote.remote.cache = FileCache(tmp_path / "small", total - 1)
    remote.prefetch(shards)
    assert remote.remote.wait(20)
    assert 0 < remote.remote.cache.used() <= (total - 1) // 2
    remote.remote.cache = FileCache(tmp_path / "enough", total)
    remote.prefetch(shards)
    assert remote.remote.wait(20)
    assert remote.remote.cache.used() == total


def test_a_failed_prefetch_is_met_by_the_reader_alone(remote: RemoteDataset, published: Any) -> None:
    published.dead = True
    remote.prefetch([0])
    assert remote.remote.wait(20)
    published.dead = False
    assert len(remote.shard_samples(0))
