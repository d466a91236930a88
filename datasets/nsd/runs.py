"""The runs of a session of time series: their volumes, and which picture began at which of them.

Layout as the NSD data manual describes it: `timeseries_sessionSS_runRR.nii.gz` holds the preprocessed volumes of
a run (226 of 4/3 s in func1pt8mm, 301 of 1 s in func1mm; resampled, not filtered), `design_sessionSS_runRR.tsv`
one number for each volume but the last: the 73k id (from 1) of the picture whose onset that volume is, or 0.
A session has twelve runs of trials; where it also has two of rest, these are numbered 1 and 14.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fmri2img.datasets.nsd.design import Design
from fmri2img.datasets.nsd.layout import RUN_TRIALS, NsdLayout
from fmri2img.datasets.nsd.volumes import VolumeFile, open_volumes
from fmri2img.errors import DamageError


@dataclass(frozen=True)
class Run:
    """One run with trials.

    Attributes:
        where: for messages.
        file: its volumes.
        onsets: int64 `(trials,)`, ascending, the volume of each onset.
        nsd_ids: int64 `(trials,)`, from 0.
    """

    where: str
    file: VolumeFile
    onsets: np.ndarray
    nsd_ids: np.ndarray


def read_onsets(path: Path) -> tuple[np.ndarray, np.ndarray, int]:
    """Onset volumes, nsd_ids (from 0) and the number of rows of a run's design file.

    Raises:
        DamageError: it is no column of whole numbers from 0.
    """
    try:
        rows = np.array([int(line) for line in path.read_text("ascii").split()], np.int64)
    except ValueError as error:
        raise DamageError(f"{path} must be a column of whole numbers: {error}. Fetch it again.") from None
    if not len(rows) or rows.min() < 0:
        raise DamageError(f"{path} must be a column of numbers from 0, and is not. Fetch it again.")
    onsets = np.flatnonzero(rows)
    return onsets, rows[onsets] - 1, len(rows)


def session_runs(layout: NsdLayout, design: Design, subject: str, space: str, session: int) -> list[Run]:
    """The twelve runs of a session that have trials, in the order measured.

    Raises:
        InputError: a run is missing.
        DamageError: a run's volumes do not fit its design, or the pictures shown are not those of the
            experiment's design.
    """
    rest = max(layout.timeseries_runs(subject, space, session), default=0) > len(RUN_TRIALS)
    first = 2 if rest else 1
    runs = []
    for number in range(first, first + len(RUN_TRIALS)):
        where = f"{subject}, session {session}, run {number}"
        table = layout.run_design(subject, space, session, number)
        onsets, nsd_ids, rows = read_onsets(table)
        file = open_volumes(layout.timeseries(subject, space, session, number))
        if file.volumes not in (rows, rows + 1):
            raise DamageError(
                f"{file.path} has {file.volumes} volumes and {table.name} {rows} rows, but a run has one "
                "volume more than rows. Fetch both again."
            )
        runs.append(Run(where, file, onsets, nsd_ids))
    if len({run.file.shape for run in runs}) > 1:
        raise DamageError(
            f"{subject}, session {session}: runs have volumes of different shapes, "
            f"{sorted({run.file.shape for run in runs})}. Fetch them again."
        )
    shown = np.concatenate([run.nsd_ids for run in runs])
    planned = design.nsd_ids(subject, session)
    if len(shown) != len(planned) or (shown != planned).any():
        raise DamageError(
            f"{subject}, session {session}: design_session{session:02d}_run*.tsv show {len(shown)} pictures "
            f"that are not the {len(planned)} of nsd_expdesign.mat in their order. Fetch these files again."
        )
    return runs
