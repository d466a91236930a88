"""What a run tells while it trains: one JSON line a logged step, always; wandb with the same names, when asked."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fmri2img.console import output
from fmri2img.errors import StoppedError
from fmri2img.files import write_atomic
from fmri2img.trainer.tracking import Tracker

METRICS = "metrics.jsonl"
Record = dict[str, Any]


class Watch:
    """Writes records of rank 0. Each stands once, also after a resume: later lines are taken out first."""

    def __init__(
        self,
        folder: Path,
        *,
        first_step: int,
        total: int,
        config: dict[str, Any],
        wandb: bool = False,
        listener: Callable[[Record], None] | None = None,
    ) -> None:
        self.path = folder / METRICS
        self.listener, self.total, self.broken = listener, total, False
        _drop_after(self.path, first_step)
        self.file = open(self.path, "a", buffering=1)  # noqa: SIM115 closed by close()
        self.tracker = Tracker(folder, config, read_records(folder), warn=self.warn) if wandb else None

    def record(self, step: int, values: Record) -> None:
        """Write one record; `step` counts finished steps."""
        line = {"step": step, "total": self.total, "time": round(time.time(), 3), **values}
        try:
            self.file.write(json.dumps(line, allow_nan=False) + "\n")
        except OSError as error:
            self.broken = True
            raise StoppedError(
                f"{self.path} took no record of step {step}: {error.strerror}. Mend that and run the same command: "
                "it goes on from the last checkpoint"
            ) from error
        if self.tracker is not None:
            self.tracker.send(line)
        if self.listener is not None:
            self.listener(line)

    def warn(self, text: str) -> None:
        """Tell the person who watches, in one line."""
        output().print(f"warning: {text}", markup=False)

    def close(self) -> None:
        """Flush and end."""
        try:
            self.file.close()
        except OSError:
            if not self.broken:  # else it was told: closing tries to write the same record again
                raise
        if self.tracker is not None:
            self.tracker.close()


def read_records(folder: Path) -> list[Record]:
    """All whole records of a run. A last line that a kill cut short is left out."""
    path = folder / METRICS
    if not path.exists():
        return []
    lines = path.read_text().split("\n")
    return [json.loads(line) for line in lines[:-1] if line]


def _drop_after(path: Path, step: int) -> None:
    # A run that begins at 0 records step 0 itself; a resumed one never repeats the step of its checkpoint.
    if path.exists():
        kept = [record for record in read_records(path.parent) if 0 < step >= record["step"]]
        write_atomic(path, "".join(json.dumps(record) + "\n" for record in kept).encode())
