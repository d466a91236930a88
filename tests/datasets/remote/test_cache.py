"""The cache holds what was asked for last, never more than it may, whoever shares it."""

import hashlib
import json
import os
import pickle
import subprocess
import sys
import threading
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fmri2img.datasets.cache import MARGIN, FileCache, open_cache
from fmri2img.errors import InputError, StoppedError

Usage = namedtuple("Usage", "total used free")
GIB = 1 << 30


@pytest.fixture
def cache(tmp_path: Path) -> FileCache:
    """Room for three files of 100 bytes."""
    return FileCache(tmp_path / "cache", 300, grace=0.0)


def name(letter: str) -> str:
    return hashlib.sha256(letter.encode()).hexdigest()


def writing(letter: str) -> Callable[[Path], None]:
    def download(partial: Path) -> None:
        partial.write_text(letter * 100)

    return download


def get(cache: FileCache, letter: str) -> Path:
    path = cache.get(name(letter), 100, writing(letter))
    assert path.read_text() == letter * 100
    return path


def there(cache: FileCache) -> str:
    return "".join(letter for letter in "abcdefg" if (cache.folder / "files" / name(letter)).exists())


def test_a_file_is_downloaded_once(cache: FileCache) -> None:
    path = get(cache, "a")
    assert cache.find(name("a"), 100) == path
    assert cache.get(name("a"), 100, lambda _: pytest.fail("downloaded again")) == path
    assert cache.used() == 100


def test_the_file_asked_for_longest_ago_makes_room(cache: FileCache) -> None:
    for letter in "abc":
        get(cache, letter)
    cache.find(name("a"), 100)
    get(cache, "d")
    assert there(cache) == "acd"
    get(cache, "e")
    assert there(cache) == "ade"


def test_a_reader_goes_on_in_a_file_that_made_room(cache: FileCache) -> None:
    with open(get(cache, "a"), "rb") as file:
        for letter in "bcd":
            get(cache, letter)
        assert there(cache) == "bcd"
        assert file.read() == b"a" * 100


def test_a_file_just_asked_for_stays_until_it_can_be_opened(tmp_path: Path) -> None:
    cache = FileCache(tmp_path, 200, grace=0.4)
    for letter in "ab":
        get(cache, letter)
    asked = (cache.folder / "files" / name("a")).stat().st_mtime
    get(cache, "c")
    assert there(cache) == "bc"
    assert (cache.folder / "files" / name("c")).stat().st_mtime - asked >= 0.4


def test_a_file_that_was_cut_is_downloaded_again(cache: FileCache) -> None:
    os.truncate(get(cache, "a"), 99)
    get(cache, "a")


def test_a_file_larger_than_the_cache_is_refused(cache: FileCache) -> None:
    with pytest.raises(
        InputError, match="may hold 300 bytes, too few for one file of 301: raise FMRI2IMG_CACHE_BYTES"
    ):
        cache.get(name("a"), 301, writing("a"))


def test_what_a_failed_download_left_is_completed_by_the_next(cache: FileCache) -> None:
    def fails(partial: Path) -> None:
        partial.write_text("a" * 60)
        raise StoppedError("the link is dead")

    with pytest.raises(StoppedError):
        cache.get(name("a"), 100, fails)
    assert cache.used() == 100  # its place is kept
    seen: list[str] = []

    def goes_on(partial: Path) -> None:
        seen.append(partial.read_text())
        partial.write_text("a" * 100)

    cache.get(name("a"), 100, goes_on)
    assert seen == ["a" * 60]
    assert cache.used() == 100


def test_a_download_that_brought_nothing_leaves_nothing(cache: FileCache) -> None:
    def fails(partial: Path) -> None:
        raise InputError("no such file")

    with pytest.raises(InputError):
        cache.get(name("a"), 100, fails)
    assert cache.used() == 0


def test_a_download_left_half_way_makes_room_like_a_file(cache: FileCache) -> None:
    (cache.folder / "partial" / f"{name('a')}.100").write_text("aa")
    os.utime(cache.folder / "partial" / f"{name('a')}.100", (0, 0))
    for letter in "bcd":
        get(cache, letter)
    assert there(cache) == "bcd"
    assert list((cache.folder / "partial").iterdir()) == []


def test_running_downloads_count_and_are_waited_for(cache: FileCache) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def slow(partial: Path) -> None:
        begun.set()
        go_on.wait(10)
        partial.write_text("a" * 300)

    first = threading.Thread(target=cache.get, args=("0" * 64, 300, slow))
    first.start()
    assert begun.wait(10)
    assert cache.used() == 300
    second = threading.Thread(target=get, args=(cache, "b"))
    second.start()
    second.join(0.3)
    assert second.is_alive()
    assert there(cache) == ""
    go_on.set()
    first.join(10)
    second.join(10)
    assert there(cache) == "b"
    assert cache.used() == 100


def test_threads_that_want_one_file_download_it_once(cache: FileCache) -> None:
    downloads: list[Path] = []

    def download(partial: Path) -> None:
        downloads.append(partial)
        threading.Event().wait(0.1)
        partial.write_text("a" * 100)

    threads = [threading.Thread(target=cache.get, args=(name("a"), 100, download)) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(downloads) == 1


def test_a_full_disk_is_one_sentence(cache: FileCache, monkeypatch: pytest.MonkeyPatch) -> None:
    get(cache, "a")
    usage = Usage(GIB, GIB, MARGIN + 30)
    monkeypatch.setattr("fmri2img.datasets.cache.shutil.disk_usage", lambda _: usage)
    get(cache, "b")  # in the place of a
    assert there(cache) == "b"
    with pytest.raises(InputError, match=r"needs 200 bytes, and its disk has 30 to give: .* FMRI2IMG_CACHE"):
        cache.get(name("c"), 200, writing("c"))


def test_folder_and_limit_come_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FMRI2IMG_CACHE", str(tmp_path / "named"))
    monkeypatch.setenv("FMRI2IMG_CACHE_BYTES", "12345")
    assert open_cache() == FileCache(tmp_path / "named", 12345)
    assert open_cache(tmp_path / "other", 7) == FileCache(tmp_path / "other", 7)
    monkeypatch.setenv("FMRI2IMG_CACHE_BYTES", "12 GB")
    with pytest.raises(InputError, match="FMRI2IMG_CACHE_BYTES=12 GB: give a whole number of bytes"):
        open_cache()
    monkeypatch.delenv("FMRI2IMG_CACHE")
    monkeypatch.delenv("FMRI2IMG_CACHE_BYTES")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    usual = open_cache()
    assert usual.folder == tmp_path / "xdg" / "fmri2img" / "shards"
    assert usual.limit > 0


def test_a_limit_beyond_the_disk_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = Usage(GIB, 0, GIB)
    monkeypatch.setattr("fmri2img.datasets.cache.shutil.disk_usage", lambda _: usage)
    assert open_cache(tmp_path).limit == int(0.8 * (GIB - MARGIN))
    with pytest.raises(InputError, match=rf"A cache of {GIB} bytes in .* its disk can give {GIB - MARGIN}"):
        open_cache(tmp_path, GIB)
    with pytest.raises(InputError, match="A cache of 0 bytes"):
        open_cache(tmp_path, 0)


def test_a_cache_can_be_sent_to_another_process(cache: FileCache) -> None:
    assert pickle.loads(pickle.dumps(cache)) == cache


def start(folder: Path, limit: int, files: list[Any], *, seed: int, times: int) -> subprocess.Popen[str]:
    script = Path(__file__).parent / "processes.py"
    command = [sys.executable, "-P", str(script), str(folder), str(limit), str(seed), str(times)]
    return subprocess.Popen([*command, json.dumps(files)], stdout=subprocess.PIPE, text=True)


def run_processes(folder: Path, limit: int, files: list[Any], seeds: list[int], times: int) -> list[int]:
    """The most bytes that each process saw in the cache."""
    running = [start(folder, limit, files, seed=seed, times=times) for seed in seeds]
    said = [process.communicate(timeout=60)[0] for process in running]
    assert [process.returncode for process in running] == [0] * len(seeds)
    return [int(text) for text in said]


def published(server: Any, count: int, size: int) -> list[tuple[str, str, int]]:
    """Files on the server: address, sha256 and size."""
    rows = []
    for number in range(count):
        data = np.random.default_rng(number).bytes(size + 100 * number)
        server.files[f"set/{number}"] = data
        rows.append((server.url(f"set/{number}"), hashlib.sha256(data).hexdigest(), len(data)))
    return rows


def test_processes_stay_within_the_bound_together(server: Any, tmp_path: Path) -> None:
    files = published(server, 9, 9000)
    seen = run_processes(tmp_path, 32_000, files, seeds=[1, 2, 3], times=25)
    assert 9_000 < max(seen) <= 32_000
    assert FileCache(tmp_path, 32_000).used() <= 32_000


def test_processes_that_want_one_file_fetch_it_once(server: Any, tmp_path: Path) -> None:
    files = published(server, 1, 20_000)
    run_processes(tmp_path, 32_000, files, seeds=[1, 2, 3], times=3)
    assert server.sent("set/0") == 20_000


def test_a_killed_download_is_completed_by_the_next_process(server: Any, tmp_path: Path) -> None:
    files = published(server, 1, 20_000)
    server.drop("set/0", at=12_001, times=10**9)
    process = start(tmp_path, 32_000, files, seed=1, times=1)
    while server.sent("set/0") < 12_001 and process.poll() is None:
        threading.Event().wait(0.01)
    process.kill()
    process.communicate(timeout=10)
    server.faults.clear()
    before = server.sent("set/0")
    run_processes(tmp_path, 32_000, files, seeds=[2], times=1)
    assert server.sent("set/0") - before == 8_000
