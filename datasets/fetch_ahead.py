"""A thread that brings files before their reader asks for them."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from fmri2img.datasets.manifest import FileEntry
from fmri2img.errors import Fmri2imgError


class Ahead:
    """Brings files in the background, one after the other, in the order in which they are wanted.

    Args:
        locate: brings a file; its failures are left to whoever reads the file.

    Attributes:
        process: the process that the thread belongs to; a fork takes none along.
        idle: set while nothing is wanted or under way.
    """

    def __init__(self, locate: Callable[[FileEntry], Path]) -> None:
        self.process, self.idle = os.getpid(), threading.Event()
        self._locate, self._wanted = locate, list[FileEntry]()
        self._changed = threading.Condition()
        self.idle.set()
        threading.Thread(target=self._work, name="fmri2img prefetch", daemon=True).start()

    def want(self, entries: Sequence[FileEntry]) -> None:
        """Want these files from now on, and no others that have not begun."""
        with self._changed:
            self._wanted = list(entries)
            if self._wanted:
                self.idle.clear()
                self._changed.notify()

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._wanted:
                    self.idle.set()
                    self._changed.wait()
                entry = self._wanted.pop(0)
            try:
                self._locate(entry)
            except (Fmri2imgError, OSError):  # the reader of this file asks again, and raises what it meets
                with self._changed:
                    self._wanted = []
