"""Looks at a run while its workers train: has it hung, is its head lost, is there room for more workers?"""

import threading
import time
from collections.abc import Callable
from pathlib import Path

from fmri2img.errors import StoppedError
from fmri2img.launch.fitting import kill_controller
from fmri2img.launch.room import MoreRoom
from fmri2img.trainer import stopping
from fmri2img.trainer.watch import METRICS

LOOK_SECONDS = 1.0
ROOM_SECONDS = 5.0
HEAR_SECONDS = 60.0
HEAD_LOST = StoppedError(
    "the head of the cluster does not answer any more: start a cluster again and run the same command, which goes on "
    "from the last checkpoint"
)


class Overseer:
    """A thread beside one start of the workers. `told` is why it ended them, if it did.

    Hung workers are told to go at once: a collective waits for one that is stuck for as long as its backend likes. If
    none of them hears that, the controller is killed. For more room they are asked, so that no step is lost, and when
    the head is lost too, since Ray gives workers a minute without it.
    """

    def __init__(
        self,
        run: Path,
        folder: Path,
        *,
        hang_after: float,
        room: Callable[[], int] = lambda: 0,
        head: Callable[[], bool] = lambda: True,
    ) -> None:
        self.run, self.folder, self.hang_after, self.room, self.head = run, folder, hang_after, room, head
        self.told: Exception | None = None
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True, name="overseer")

    def __enter__(self) -> "Overseer":
        self._first = self._length()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _look(self) -> None:
        length, seen, before = self._first, False, 0
        changed = looked = time.monotonic()
        while not self._done.wait(min(LOOK_SECONDS, self.hang_after / 4)):
            now = time.monotonic()
            if (found := self._length()) != length:
                length, changed, seen = found, now, True
            # Workers that have not begun are for those who start them.
            if seen and now - changed > self.hang_after:
                self.told = TimeoutError(f"nothing new from the workers for {now - changed:.0f} s")
                stopping.request(self.run, at_once=True)
                if not self._done.wait(HEAR_SECONDS):
                    kill_controller(self.folder)
                return
            if seen and self.told is None and now - looked > ROOM_SECONDS:
                looked = now
                if not self.head():
                    self.told = HEAD_LOST
                    stopping.request(self.run)
                    continue
                could = self.room()
                # Twice in a row, since the places of workers that have just ended are free for a moment.
                if could and could == before:
                    self.told = MoreRoom(could)
                    stopping.request(self.run)
                before = could

    def _length(self) -> int:
        path = self.run / METRICS
        return path.stat().st_size if path.exists() else 0
