"""A run folder's own story: `events.jsonl`, and a heartbeat by which others see that the driver lives.

The driver writes both, nobody else. An event is one JSON line with `time` (Unix seconds) and `event`:

| event | what it says |
|---|---|
| `started` | job, host, process id, workers, cluster, the step that the run goes on from |
| `checkpoint` | the step of a committed checkpoint |
| `node-joined`, `node-lost` | address of a node of the cluster |
| `failed` | why training was interrupted, and the last step on record |
| `waiting` | how many workers find a place, and how many are wanted |
| `shrunk` | with how many workers the run goes on, and how many it wants |
| `growing` | that it stopped after a step because there is room for so many workers |
| `restarted` | after a failure: step gone on from, steps done again, seconds without training, workers |
| `finished` | the last step |
| `stopped` | reason, exit code, and the last step on record |
"""

import json
import os
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fmri2img import checkpoints_schema as schema
from fmri2img.errors import Fmri2imgError, InputError
from fmri2img.files import write_json
from fmri2img.trainer.watch import read_records

EVENTS = "events.jsonl"
HEARTBEAT = "heartbeat.json"
OWN = {EVENTS, HEARTBEAT}
BEAT_SECONDS = 5.0
LOOK_SECONDS = 1.0

Nodes = Callable[[], dict[str, str] | None]


def read_events(run: Path) -> list[dict[str, Any]]:
    """All whole events of a run, oldest first. A last line that a kill cut short is left out."""
    path = run / EVENTS
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text().split("\n")[:-1] if line]


def last_step(run: Path) -> int:
    """The last step on record, 0 when there is none."""
    return max((int(record["step"]) for record in read_records(run)), default=0)


def checkpoint_steps(run: Path) -> list[int]:
    """Steps of the committed checkpoints that a run holds, sorted."""
    steps = (schema.parse_step(path.name) for path in schema.step_folders(run))
    return sorted(step for step in steps if step is not None)


class Story:
    """Writes one run's events. Threads may tell at the same time."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self._lock = threading.Lock()
        self._failed: dict[str, Any] | None = None

    def tell(self, event: str, **facts: Any) -> None:
        """Append one event."""
        line = json.dumps({"time": round(time.time(), 3), "event": event, **facts}, allow_nan=False)
        with self._lock, open(self.run / EVENTS, "a") as file:
            file.write(line + "\n")

    def failed(self, reason: str) -> None:
        """Training was interrupted; `going` will say what that cost."""
        self._failed = {"time": time.time(), "step": last_step(self.run)}
        self.tell("failed", reason=reason, step=self._failed["step"])

    def going(self, workers: list[dict[str, Any]]) -> None:
        """New workers train. After a failure, tell its cost: steps that are done again, seconds until now."""
        before, self._failed = self._failed, None
        if before is None:
            return
        step = max(checkpoint_steps(self.run), default=0)
        self.tell(
            "restarted",
            step=step,
            lost_steps=max(0, before["step"] - step),
            seconds=round(time.time() - before["time"], 1),
            workers=len(workers),
        )


@contextmanager
def telling(run: Path, job: str, **facts: Any) -> Iterator[Story]:
    """Tell the story of a job that runs in the block: how it began, its checkpoints, how it ended; and beat.

    A new folder whose job is refused for what the user gave is taken away again: there is no run to tell of.
    """
    run.mkdir(parents=True, exist_ok=True)
    new = not any(run.iterdir())
    story = Story(run)
    step = max(checkpoint_steps(run), default=0)
    story.tell("started", job=job, host=socket.gethostname(), pid=os.getpid(), step=step, **facts)
    watcher = _Watcher(story)
    try:
        with watcher:
            yield story
    except BaseException as error:
        code = error.exit_code if isinstance(error, Fmri2imgError) else 1
        reason = " ".join(str(error).split()) or type(error).__name__
        if new and isinstance(error, InputError) and {path.name for path in run.iterdir()} <= OWN:
            shutil.rmtree(run)
        else:
            _write_quietly(lambda: story.tell("stopped", reason=reason, exit_code=code, step=last_step(run)))
        raise
    story.tell("finished", step=max(checkpoint_steps(run), default=0))


def _write_quietly(write: Callable[[], None]) -> None:
    """What stopped the run is told to the user; a full disk must not take its place."""
    try:
        write()
    except OSError:
        return


class _Watcher:
    """Beats, and tells of checkpoints as they are committed, while its block runs."""

    def __init__(self, story: Story) -> None:
        self.story = story
        self.known = set(checkpoint_steps(story.run))
        self.done = threading.Event()
        self.thread = threading.Thread(target=self._watch, name="story", daemon=True)

    def __enter__(self) -> None:
        self._beat("running")
        self.thread.start()

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self.thread.join()
        _write_quietly(lambda: self._beat("ended"))

    def _beat(self, state: str) -> None:
        told = {"time": time.time(), "host": socket.gethostname(), "pid": os.getpid(), "state": state}
        write_json(self.story.run / HEARTBEAT, told)

    def _watch(self) -> None:
        beaten = time.monotonic()
        while True:
            last = self.done.wait(LOOK_SECONDS)
            _write_quietly(self._look)
            if time.monotonic() - beaten > BEAT_SECONDS:
                beaten = time.monotonic()
                _write_quietly(lambda: self._beat("running"))
            if last:
                return

    def _look(self) -> None:
        for step in checkpoint_steps(self.story.run):
            if step not in self.known:
                self.known.add(step)
                self.story.tell("checkpoint", step=step)


@contextmanager
def following_nodes(story: Story, nodes: Nodes) -> Iterator[None]:
    """While the block runs, tell of nodes that join and are lost. `nodes()` are those alive, name to address."""
    done = threading.Event()

    def watch() -> None:
        known: dict[str, str] | None = None
        while not done.wait(LOOK_SECONDS):
            alive = nodes()
            if alive is None:
                continue
            if known is not None:
                for name in alive.keys() - known.keys():
                    story.tell("node-joined", node=name, address=alive[name])
                for name in known.keys() - alive.keys():
                    story.tell("node-lost", node=name, address=known[name])
            known = alive

    thread = threading.Thread(target=watch, name="nodes", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(timeout=10)  # a lost head may keep it waiting
