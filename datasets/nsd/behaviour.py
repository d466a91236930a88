"""What NSD subjects did on each trial: the recognition task's answers, from `responses.tsv`."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from fmri2img.datasets.nsd.layout import RUN_TRIALS
from fmri2img.errors import DamageError

BEHAVIOUR = (
    "time", "isold", "iscorrect", "rt", "changemind", "memoryrecent", "memoryfirst", "isoldcurrent",
    "iscorrectcurrent", "total1", "total2", "button", "missingdata",
)  # fmt: skip
"""Columns of `responses.tsv` that are kept for each trial, in small letters; reaction times are in ms."""


class Behaviour:
    """What a subject did on each trial, from `responses.tsv`.

    Raises:
        DamageError: a column is missing, or a value is no number.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with open(path, newline="", encoding="utf-8") as file:
            rows = csv.reader(file, delimiter="\t")
            header = [name.strip().lower() for name in next(rows, [])]
            missing = [name for name in ("session", "73kid", *BEHAVIOUR) if name not in header]
            if missing:
                raise DamageError(
                    f"{path} has no column {missing[0].upper()!r}, only {', '.join(header).upper()[:200]}. "
                    "Fetch it again."
                )
            try:
                self._values = np.array([row for row in rows if row], np.float64).reshape(-1, len(header))
            except ValueError as error:
                raise DamageError(f"{path} is damaged: {error}. Fetch it again.") from None
        self._column = {name: self._values[:, position] for position, name in enumerate(header)}

    def session(self, session: int, nsd_ids: np.ndarray) -> dict[str, np.ndarray]:
        """float64 `(trials,)` by name, and the number of the run of each trial.

        Raises:
            DamageError: the file has other pictures for the session than the design.
        """
        rows = self._column["session"] == session
        if not np.array_equal(self._column["73kid"][rows], nsd_ids + 1):
            raise DamageError(
                f"{self.path}, session {session}: its {int(rows.sum())} trials are not those of the design "
                f"({len(nsd_ids)} trials). Fetch both files again."
            )
        run = np.repeat(np.arange(1, len(RUN_TRIALS) + 1), RUN_TRIALS)
        return {"run": run} | {name: self._column[name][rows] for name in BEHAVIOUR}
