"""Ray Train's `fit` in a thread of its own, ended in good order when this process is told to stop.

In the main thread, Ray Train takes the signals, and its Ctrl-C ends with exit code 0. And Ray ends the process, with
whatever code, when it is shut down under a thread that still waits for it: so nobody leaves before `fit` has ended.
"""

import json
import os
import signal
import socket
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from contextlib import suppress
from pathlib import Path
from typing import Any

from fmri2img.errors import StoppedError

CONTROLLER = "controller.json"
ENDING_SECONDS = 30.0


def controller_noted(folder: Path) -> Any:
    """A callback of Ray Train that writes where its controller runs into `folder`: who ends it, ends all workers."""
    from ray.train.v2._internal.execution.callback import ControllerCallback

    class Noted(ControllerCallback):
        def after_controller_start(self, train_run_context: Any) -> None:
            told = json.dumps({"host": socket.gethostname(), "pid": os.getpid()})
            (folder / CONTROLLER).write_text(told)

    return Noted()


def fit_aside(fit: Callable[[], object], *, folder: Path, ask: Callable[[], bool], grace: float) -> None:
    """Run `fit` and return when it has ended; raises what it raised.

    When this process is told to stop (an exception in the main thread), `ask` asks the workers and says whether there
    are any. They have `grace` seconds to end `fit`; then the controller, found through `controller_noted(folder)`, is
    killed, and with it what it started. `fit` may have come to its end by then: nothing was stopped in that case.
    """
    ended: Future[object] = Future()

    def run() -> None:
        try:
            ended.set_result(fit())
        except BaseException as error:
            ended.set_exception(error)

    threading.Thread(target=run, daemon=True, name="ray-train").start()
    try:
        ended.result()
    except BaseException as told:
        if ended.done():
            raise
        try:
            if ask():
                wait([ended], timeout=grace)
        finally:
            if not ended.done():
                kill_controller(folder)
                wait([ended], timeout=ENDING_SECONDS)
        if not isinstance(told, StoppedError):
            raise
        if not ended.done():
            raise
        if (error := ended.exception()) is not None:
            raise told from error


def kill_controller(folder: Path) -> None:
    """End the controller. Elsewhere, behind a Ray client, there is no thread here that Ray could be shut down under."""
    with suppress(FileNotFoundError, ProcessLookupError):
        noted = json.loads((folder / CONTROLLER).read_text())
        if noted["host"] == socket.gethostname():
            os.kill(noted["pid"], signal.SIGKILL)
