"""What a trial source may not give: each rule names subject, session and trial, and the way out."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from fmri2img.datasets.manifest import PARTITIONS, RESERVED_FOLDERS
from fmri2img.datasets.source import SessionTrials, SubjectSource, TrialSource
from fmri2img.errors import InputError

_NAME = r"[A-Za-z][A-Za-z0-9_]{0,59}"


def check_subject(subject: str) -> None:
    """Refuse a subject id that cannot be a folder and part of a key.

    Raises:
        InputError: it cannot.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9-]{0,39}", subject) or subject in RESERVED_FOLDERS:
        raise InputError(
            f"{subject!r} cannot be a subject id: use up to 40 letters, digits and hyphens, "
            f"other than {' and '.join(RESERVED_FOLDERS)}."
        )


def session_numbers(subject: str, source: SubjectSource) -> list[int]:
    """The sessions of a subject, checked to be ascending numbers from 1."""
    sessions = [int(session) for session in source.sessions]
    if sessions != sorted(set(sessions)) or not sessions or sessions[0] < 1 or sessions[-1] > 32767:
        raise InputError(f"{subject}: sessions must be ascending numbers from 1 to 32767, not {sessions}.")
    return sessions


def checked_responses(subject: str, voxels: int, session: int, trials: SessionTrials) -> np.ndarray:
    """The responses of a session as contiguous float32, `(trials, voxels)` or `(trials, time, voxels)`.

    Raises:
        InputError: the session is misshapen or not finite; names subject, session and trial.
    """
    where = f"{subject}, session {session}"
    responses, ids = np.asarray(trials.responses), np.asarray(trials.nsd_ids)
    shape = responses.shape
    if len(shape) not in (2, 3) or 0 in shape[1:] or shape[-1] != voxels or ids.shape != shape[:1]:
        raise InputError(
            f"{where}: responses are {shape} and picture ids {ids.shape}, but a session needs "
            f"(trials, {voxels}) or (trials, time, {voxels}), and (trials,): correct the source."
        )
    if responses.dtype.kind not in "fiub":
        raise InputError(
            f"{where}: responses are {responses.dtype}, and must be numbers: correct the source."
        )
    if len(ids) and (ids.dtype.kind not in "iu" or ids.min() < 0):
        raise InputError(
            f"{where}: picture ids must be integers from 0 (found {ids.dtype}, least {ids.min()})."
        )
    _check_numbers(where, trials.numbers, len(ids))
    for name, values in trials.behaviour.items():
        _check_behaviour(where, name, np.asarray(values), len(ids))
    with np.errstate(over="ignore"):
        single = np.ascontiguousarray(responses, np.float32)
    if single.size and not (np.isfinite(single.min()) and np.isfinite(single.max())):
        bad = ~np.isfinite(single)
        place = tuple(int(value) for value in np.argwhere(bad)[0])
        count = int(bad.reshape(len(bad), -1).any(axis=1).sum())
        raise InputError(
            f"{where}, trial {place[0] + 1}: the response of voxel {place[-1]} is {responses[place]}, and must "
            f"be finite ({count} such trials in the session): drop these or the voxels."
        )
    return single


def mark_test(source: TrialSource, subject: str, session: int, nsd_ids: np.ndarray) -> np.ndarray:
    """Which trials of a session are test trials, bool `(trials,)`."""
    of = {int(n): bool(source.is_test(subject, int(n), session)) for n in np.unique(nsd_ids)}
    return np.array([of[int(n)] for n in nsd_ids], bool)


def checked_table(subject: str, source: SubjectSource) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """The voxel table, and the number of voxels of each ROI.

    Raises:
        InputError: an array is misshapen, or a noise ceiling outside [0, 1].
    """
    table = {name: np.asarray(array) for name, array in source.voxel_table().items()}
    for name, array in table.items():
        if array.ndim < 1 or len(array) != source.voxels or array.dtype.kind not in "biufU":
            raise InputError(
                f"{subject}: {name} of the voxel table is {array.dtype} {array.shape}, and must be numbers "
                f"or strings with {source.voxels} entries, one a voxel."
            )
    ceiling = table.get("noise_ceiling")
    if ceiling is not None:
        if not (ceiling.ndim == 1 and ceiling.dtype.kind == "f" and ((ceiling >= 0) & (ceiling <= 1)).all()):
            raise InputError(
                f"{subject}: noise_ceiling must be one number in [0, 1] for each voxel, and is not."
            )
        table["noise_ceiling"] = ceiling.astype(np.float32)
    if "roi" not in table:
        return table, {}
    if table["roi"].dtype.kind != "U" or table["roi"].ndim != 1:
        raise InputError(f"{subject}: roi must be one string for each voxel, not {table['roi'].dtype}.")
    names, counts = np.unique(table["roi"], return_counts=True)
    return table, {str(name): int(count) for name, count in zip(names, counts, strict=True) if name}


def checked_splits(source: TrialSource) -> dict[str, dict[str, Any]]:
    """The splits of the manifest: `train`, `test`, and the source's named ones.

    A subject that the source does not have is left out of a split's last sessions.

    Raises:
        InputError: a name, a partition, a picture or a session that cannot be.
    """
    splits: dict[str, dict[str, Any]] = {
        "train": {"partition": "train", "description": "every training trial"},
        "test": {"partition": "test", "description": "every test trial"},
    }
    for name, split in source.splits.items():
        ids = None if split.nsd_ids is None else sorted({int(n) for n in split.nsd_ids})
        last = {s: int(n) for s, n in sorted(split.last_session.items()) if s in source.subjects}
        if name in splits or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,59}", name):
            raise InputError(
                f"{name!r} cannot name a split: use letters, digits, '-' and '_', and neither train nor test."
            )
        if split.partition not in PARTITIONS or (ids and ids[0] < 0) or min(last.values(), default=1) < 1:
            raise InputError(
                f"Split {name}: partition {split.partition!r} must be train or test, pictures ids from 0 and "
                "last sessions numbers from 1: correct the source."
            )
        splits[name] = {"partition": split.partition, "nsd_ids": ids, "description": split.description}
        splits[name]["last_session"] = last
    return splits


def check_test_pictures(
    subject: str, splits: dict[str, dict[str, Any]], trained: set[int], tested: set[int]
) -> None:
    """Refuse a named test split that lists pictures whose trials were all training trials.

    Raises:
        InputError: such a picture took part in the statistics.
    """
    for name, split in splits.items():
        if split["partition"] == "test" and split.get("nsd_ids"):
            leaked = sorted(set(split["nsd_ids"]) & (trained - tested))
            if leaked:
                raise InputError(
                    f"Split {name} says that picture {leaked[0]} is a test picture ({len(leaked)} such), but "
                    f"{subject}'s trials of it are training trials: correct is_test or the split of the source."
                )


def _check_numbers(where: str, numbers: np.ndarray | None, trials: int) -> None:
    if numbers is None:
        return
    found = np.asarray(numbers)
    if found.shape != (trials,) or found.dtype.kind not in "iu":
        raise InputError(f"{where}: trial numbers are {found.dtype} {found.shape}, not integers ({trials},).")
    if trials and (found[0] < 1 or (np.diff(found.astype(np.int64)) < 1).any()):
        raise InputError(f"{where}: trial numbers must ascend from 1 or above, one a trial: sort the trials.")


def _check_behaviour(where: str, name: str, values: np.ndarray, trials: int) -> None:
    if not re.fullmatch(_NAME, name) or name in ("session", "trial"):
        raise InputError(
            f"{where}: {name!r} cannot name a behavioural value: use letters, digits and '_', beginning with a "
            "letter, and neither session nor trial."
        )
    if values.shape != (trials,) or values.dtype.kind not in "biuf":
        raise InputError(
            f"{where}: {name} is {values.dtype} {values.shape}, and must be numbers ({trials},)."
        )
    if np.isinf(values).any():
        raise InputError(f"{where}: {name} holds an infinite value: give NaN where there is none.")
