"""Stopping in good order: whoever asks gets the step under way, a checkpoint of it, and a job that says how to go on.

A signal asks in the process that trains; a launcher, whose workers are elsewhere, asks by a file in the run folder.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

REQUEST = ".stop"
LOOK_SECONDS = 0.5


class _State:
    """Of this process: signals are the process's too."""

    listening = False
    asked = False
    file: Path | None = None
    looked = 0.0


def ask() -> bool:
    """Ask the training in this process to stop. False when none runs, which is then for the caller to end."""
    _State.asked = _State.listening
    return _State.listening


def watch_file(run: Path) -> None:
    """From now on, a request in this run folder counts as well."""
    _State.file = run / REQUEST


def request(run: Path) -> None:
    """Ask the workers of a run to stop, wherever they are."""
    (run / REQUEST).touch()


def withdraw(run: Path) -> None:
    """Take a request back, before workers start."""
    (run / REQUEST).unlink(missing_ok=True)


@contextmanager
def listening() -> Iterator[None]:
    """While the block runs, `ask` is heard."""
    _State.listening, _State.asked = True, False
    try:
        yield
    finally:
        _State.listening = _State.asked = False


def asked() -> bool:
    """Whether somebody asked. The run folder is looked at twice a second, since it may be far away."""
    now = time.monotonic()
    if not _State.asked and _State.file is not None and now - _State.looked > LOOK_SECONDS:
        _State.looked = now
        _State.asked = _State.file.exists()
    return _State.asked
