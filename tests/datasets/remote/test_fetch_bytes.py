"""A file arrives whole through links that fail, or the error says what to do."""

import hashlib
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fmri2img.datasets.fetch_bytes import PartedMd5, land, read_whole
from fmri2img.datasets.fetch_link import Link
from fmri2img.errors import DamageError, InputError, StoppedError

DATA = np.random.default_rng(0).bytes(5500)
FILE = "bucket/file"
SHA = {"sha256": hashlib.sha256(DATA).hexdigest()}


@pytest.fixture
def published(server: Any) -> Any:
    server.files[FILE] = DATA
    return server


@pytest.fixture(params=["http", "s3"])
def way(request: pytest.FixtureRequest, published: Any, link: Link, s3_link: Link) -> tuple[str, Link]:
    return (published.url(FILE), link) if request.param == "http" else (f"s3://{FILE}", s3_link)


def arrives(way: tuple[str, Link], partial: Path, **options: Any) -> bytes:
    url, link = way
    land(url, partial, size=len(DATA), expected=SHA, link=link, **options)
    return partial.read_bytes()


def test_a_file_arrives_in_blocks(way: tuple[str, Link], published: Any, tmp_path: Path) -> None:
    told: list[int] = []
    assert arrives(way, tmp_path / "file", tell=told.append) == DATA
    assert told == [1000, 2000, 3000, 4000, 5000, 5500]
    assert published.sent(FILE) == len(DATA)


def test_a_drop_costs_no_more_than_the_block_it_hit(
    way: tuple[str, Link], published: Any, tmp_path: Path
) -> None:
    published.drop(FILE, at=2700)
    assert arrives(way, tmp_path / "file") == DATA
    assert published.sent(FILE) == len(DATA) + 700
    starts = [request.start for request in published.gets(FILE)]
    assert starts == [0, 1000, 2000, 2000, 3000, 4000, 5000]


def test_the_next_process_asks_only_for_what_is_missing(
    way: tuple[str, Link], published: Any, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(DATA[:3300])
    assert arrives(way, tmp_path / "file") == DATA
    assert published.sent(FILE) == len(DATA) - 3300


@pytest.mark.parametrize("status", [500, 503, 429])
def test_a_server_that_is_busy_is_asked_again(
    way: tuple[str, Link], published: Any, tmp_path: Path, status: int
) -> None:
    published.refuse(FILE, status, times=2)
    assert arrives(way, tmp_path / "file") == DATA


def test_a_silent_connection_is_given_up_and_opened_anew(
    way: tuple[str, Link], published: Any, tmp_path: Path
) -> None:
    published.stall(FILE)
    url, link = way
    assert arrives((url, replace(link, timeout=0.3)), tmp_path / "file") == DATA
    assert [request.start for request in published.gets(FILE)][:2] == [0, 0]


def test_spoilt_bytes_are_found_and_fetched_again(
    way: tuple[str, Link], published: Any, tmp_path: Path
) -> None:
    published.corrupt(FILE, at=1234)
    assert arrives(way, tmp_path / "file") == DATA
    assert published.sent(FILE) == 2 * len(DATA)


def test_a_spoilt_beginning_left_by_another_process_is_found(
    way: tuple[str, Link], published: Any, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(b"?" + DATA[1:2000])
    assert arrives(way, tmp_path / "file") == DATA


def test_bytes_that_stay_wrong_are_damage(way: tuple[str, Link], published: Any, tmp_path: Path) -> None:
    published.corrupt(FILE, at=10, times=99)
    with pytest.raises(DamageError, match=r"bucket/file: its sha256 is .* in each of 3 downloads"):
        arrives(way, tmp_path / "file")
    assert not (tmp_path / "file").exists()


def test_a_file_of_another_size_is_damage(way: tuple[str, Link], published: Any, tmp_path: Path) -> None:
    published.files[FILE] = DATA[:-1]
    with pytest.raises(DamageError, match="has 5499 bytes, but 5500 were announced"):
        arrives(way, tmp_path / "file")


def test_a_dead_link_is_tried_again_then_named_and_what_arrived_is_kept(
    way: tuple[str, Link], published: Any, tmp_path: Path
) -> None:
    published.drop(FILE, at=2500, times=99)
    with pytest.raises(
        StoppedError, match=r"bucket/file: the link failed 4 times in a row .* same command goes on"
    ):
        arrives(way, tmp_path / "file")
    assert len(published.gets(FILE)) == 2 + way[1].attempts
    assert (tmp_path / "file").read_bytes() == DATA[:2000]


def test_a_server_that_is_gone_is_a_dead_link(way: tuple[str, Link], published: Any, tmp_path: Path) -> None:
    published.dead = True
    with pytest.raises(StoppedError, match="the link failed 4 times"):
        arrives(way, tmp_path / "file")
    with pytest.raises(StoppedError, match="the link failed 4 times"):
        read_whole(*way)


def test_a_file_that_is_not_there_is_asked_for_once(
    way: tuple[str, Link], published: Any, tmp_path: Path
) -> None:
    url, link = way
    with pytest.raises(InputError, match="does not exist: check the address"):
        land(f"{url}x", tmp_path / "file", size=5, expected={}, link=link)
    assert len(published.requests) <= 3
    with pytest.raises(InputError, match="does not exist"):
        read_whole(f"{url}x", link)


def test_a_file_one_may_not_read_is_refused_at_once(
    way: tuple[str, Link], published: Any, tmp_path: Path
) -> None:
    published.refuse(FILE, 403, times=99)
    with pytest.raises(InputError, match="may not be read"):
        arrives(way, tmp_path / "file")
    assert len(published.gets(FILE)) == 1


def test_the_work_stops_between_two_blocks_when_it_is_told_to(
    way: tuple[str, Link], published: Any, tmp_path: Path
) -> None:
    stop = threading.Event()
    with pytest.raises(StoppedError, match="goes on from what has arrived"):
        arrives(way, tmp_path / "file", stop=stop, tell=lambda place: stop.set() if place == 2000 else None)
    assert (tmp_path / "file").read_bytes() == DATA[:2000]


def test_the_work_stops_between_two_attempts_when_it_is_told_to(published: Any, tmp_path: Path) -> None:
    stop, begun = threading.Event(), time.monotonic()
    published.dead = True

    def stop_while_it_waits() -> None:
        while len(published.requests) < 2:
            stop.wait(0.01)
        stop.wait(0.3)
        stop.set()

    threading.Thread(target=stop_while_it_waits).start()
    patient = Link(attempts=50, wait=30, longest=60, timeout=0.3)
    with pytest.raises(StoppedError):
        land(published.url(FILE), tmp_path / "file", size=len(DATA), expected=SHA, link=patient, stop=stop)
    assert time.monotonic() - begun < 20


@pytest.mark.parametrize(("size", "part"), [(5500, 1000), (5000, 1000), (5500, 6000), (5500, 999)])
def test_the_tag_of_an_object_uploaded_in_parts(size: int, part: int) -> None:
    parts = [hashlib.md5(DATA[:size][place : place + part]).digest() for place in range(0, size, part)]
    digest = PartedMd5(part)
    for place in range(0, size, 700):
        digest.update(DATA[:size][place : place + 700])
    assert digest.hexdigest() == f"{hashlib.md5(b''.join(parts)).hexdigest()}-{len(parts)}"


def test_a_small_file_is_read_whole_and_a_large_one_is_not(way: tuple[str, Link], published: Any) -> None:
    assert read_whole(*way) == DATA
    with pytest.raises(InputError, match="has 5500 bytes, and at most 100 are read"):
        read_whole(*way, limit=100)


def test_an_address_of_another_kind_is_refused(link: Link) -> None:
    with pytest.raises(InputError, match="use s3://, hf:// or https://"):
        read_whole("ftp://somewhere/file", link)
