"""The three jobs on a data set behind an address."""

import functools
import threading
from collections.abc import Callable, Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest


class Quiet(SimpleHTTPRequestHandler):
    """A file server that says nothing."""

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def address(world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The world's data set over HTTP on the loopback address, with a cache of its own."""
    monkeypatch.setenv("FMRI2IMG_CACHE", str(tmp_path / "cache"))
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(world.data)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.slow
def test_pretraining_finetuning_and_reconstruction_read_from_an_address(
    address: str, world: Any, said: Callable[..., Any], flags: list[str], two_workers: None, tmp_path: Path
) -> None:
    quick = [*flags, "--set", "pretraining.steps=4", "--set", "pretraining.checkpoint_every=4"]
    runs = {}
    for name, data in (("near", world.data), ("far", address)):
        pre, fine, made = (tmp_path / f"{name}-{part}" for part in ("pre", "fine", "made"))
        where = ["--data", data, *quick]
        told = said("pretrain", "--out", pre, "--hold-out", "subj01", "--workers", 2, *where)
        assert told.code == 0, told.err
        told = said("finetune", "--from", pre, "--subject", "subj01", "--out", fine, *where)
        assert told.code == 0, told.err
        told = said("reconstruct", "--from", fine, "--data", data, "--out", made, "--workers", 1)
        assert told.code == 0, told.err
        assert said("evaluate", made).code == 0  # which finds the data where the pictures were made from
        runs[name] = {path.name: path.read_bytes() for path in made.rglob("*.png")}
    assert runs["near"] == runs["far"] and runs["near"]
    assert list((tmp_path / "cache").rglob("*"))


@pytest.mark.parametrize("words", [("data", "verify"), ("features",)])
def test_what_needs_the_folder_says_so(words: tuple[str, ...], said: Callable[..., Any]) -> None:
    told = said(*words, "https://example.org/data")
    assert told.code == 2
    assert "https://example.org/data is an address" in told.line
