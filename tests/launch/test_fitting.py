"""`fit` in its thread: it ends before this process does, asked, or with its controller killed."""

import json
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from fmri2img.errors import StoppedError
from fmri2img.launch.fitting import CONTROLLER, fit_aside


class Told(StoppedError):
    """What a signal raises in the main thread."""


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> None:
    """The main thread is told to stop as soon as it waits for `fit`."""
    result = Future.result
    main = threading.main_thread()

    def interrupted(self: Any, timeout: float | None = None) -> Any:
        if threading.current_thread() is main:
            time.sleep(0.05)
            raise Told("stopped by SIGTERM")
        return result(self, timeout)

    monkeypatch.setattr(Future, "result", interrupted)


def test_what_fit_raises_comes_through(tmp_path: Path) -> None:
    def fit() -> None:
        raise ValueError("its own")

    with pytest.raises(ValueError, match="its own"):
        fit_aside(fit, folder=tmp_path, ask=lambda: True, grace=1)


def test_workers_that_are_asked_say_where_they_stopped(told: None, tmp_path: Path) -> None:
    asked = threading.Event()

    def fit() -> None:
        asked.wait()
        raise StoppedError("stopped after step 7")

    def ask() -> bool:
        asked.set()
        return True

    with pytest.raises(Told) as raised:
        fit_aside(fit, folder=tmp_path, ask=ask, grace=10)
    assert str(raised.value.__cause__) == "stopped after step 7"


def test_a_fit_that_ends_meanwhile_was_not_stopped(told: None, tmp_path: Path) -> None:
    asked = threading.Event()

    def ask() -> bool:
        asked.set()
        return True

    fit_aside(asked.wait, folder=tmp_path, ask=ask, grace=10)


@pytest.mark.parametrize("workers", [True, False], ids=["hung workers", "no workers yet"])
def test_the_controller_is_killed_when_nobody_answers(told: None, tmp_path: Path, workers: bool) -> None:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as controller:
        (tmp_path / CONTROLLER).write_text(json.dumps({"host": socket.gethostname(), "pid": controller.pid}))

        def fit() -> None:
            controller.wait()
            raise RuntimeError("the actor died")

        begun = time.monotonic()
        with pytest.raises(Told):
            fit_aside(fit, folder=tmp_path, ask=lambda: workers, grace=0.2 if workers else 500)
        assert controller.returncode == -9
        assert time.monotonic() - begun < 30
