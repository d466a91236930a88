"""Stopping in good order: whoever asks gets the step under way, a checkpoint of it, and a job that says how to go on.

A signal asks in the process that trains; a launcher, whose workers are elsewhere, asks by a file in the run folder. It
may ask them to go at once, too, which a thread hears while the rest of the process waits for others in vain.
"""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

REQUEST = ".stop"
AT_ONCE = "at once"
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
    """From now on, a request in this run folder counts as well, and one to go at once ends this process."""
    _State.file = run / REQUEST

    def obey(path: Path) -> None:
        while _State.file == path:
            if told(run) == AT_ONCE:
                os._exit(1)
            time.sleep(LOOK_SECONDS)

    threading.Thread(target=obey, args=(_State.file,), daemon=True, name="obey").start()


def request(run: Path, *, at_once: bool = False) -> None:
    """Ask the workers of a run to stop, wherever they are: after the step under way, or at once."""
    (run / REQUEST).write_text(AT_ONCE if at_once else "after this step")


def told(run: Path) -> str | None:
    """What is asked for in a run folder."""
    with suppress(FileNotFoundError):
        return (run / REQUEST).read_text()
    return None


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
