"""A way in for any arrays: what an `ArraysSpec` describes, as a trial source."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fmri2img.datasets.array_files import ArrayFile, integers, open_array, texts
from fmri2img.datasets.arrays_spec import ArraysSpec, BySubject, SubjectSpec
from fmri2img.datasets.source import NamedSplit, SessionTrials, SubjectSource
from fmri2img.errors import InputError


@dataclass(frozen=True)
class _Subject:
    """One subject's arrays, as a `SubjectSource`."""

    responses: ArrayFile
    nsd_ids: np.ndarray
    session_of: np.ndarray
    order: np.ndarray
    kept: np.ndarray
    table: dict[str, ArrayFile]

    @property
    def voxels(self) -> int:
        """Number of voxels."""
        return self.responses.shape[1]

    @property
    def sessions(self) -> list[int]:
        """Session numbers, from 1."""
        return [int(session) for session in np.unique(self.session_of)]

    def voxel_table(self) -> dict[str, np.ndarray]:
        """The arrays named in the YAML; a column vector counts as a vector."""
        arrays = {name: array.all() for name, array in self.table.items()}
        arrays = {n: a.reshape(-1) if a.ndim == 2 and 1 in a.shape else a for n, a in arrays.items()}
        return {name: a.astype(str) if a.dtype.kind == "S" else a for name, a in arrays.items()}

    def session(self, session: int) -> SessionTrials:
        """The trials of one session that are not left out, in time order."""
        rows = np.flatnonzero((self.session_of == session) & self.kept)
        rows = rows[np.argsort(self.order[rows], kind="stable")]
        return SessionTrials(self.responses.rows(rows).astype(np.float32, copy=False), self.nsd_ids[rows])


@dataclass
class ArraysSource:
    """Trials, pictures and captions of an `ArraysSpec`. A picture's id is its index, from 0.

    Raises:
        InputError: arrays that are missing, misshapen or do not fit each other, or a split that names
            pictures or sessions that are not there.
    """

    spec: ArraysSpec
    subjects: Mapping[str, SubjectSource] = field(init=False)

    def __post_init__(self) -> None:
        self._root = Path(self.spec.root)
        self._pictures = open_array(self._root, self.spec.pictures.array)
        shape = self._pictures.shape
        if len(shape) not in (3, 4) or (len(shape) == 4 and shape[3] != 3):
            raise InputError(
                f"pictures ({self.spec.pictures.array}) are {shape}: "
                "give (n, height, width) or (n, height, width, 3)."
            )
        if self.spec.pictures.scale is None and self._pictures.dtype != np.uint8:
            raise InputError(
                f"pictures ({self.spec.pictures.array}) are {self._pictures.dtype}: "
                "say with pictures.scale: [black, white] which values are shown as black and white."
            )
        if self.spec.pictures.scale is None and self._pictures.rows(np.arange(min(shape[0], 16))).max() <= 1:
            raise InputError(
                f"pictures ({self.spec.pictures.array}) are 0 or 1, which would be black: "
                "say pictures.scale: [0, 1]."
            )
        captions = self.spec.pictures.captions
        self._captions = texts(self._root, captions, shape[0]) if captions else [[] for _ in range(shape[0])]
        loaded = {name: self._subject(name, spec) for name, spec in self.spec.subjects.items()}
        self._check_split(loaded)
        self.subjects = loaded

    @property
    def name(self) -> str:
        """Name of the data set."""
        return self.spec.name

    @property
    def terms(self) -> str:
        """Terms of use."""
        return self.spec.terms

    @property
    def provenance(self) -> dict[str, str]:
        """What the YAML says, and the YAML itself."""
        return dict(self.spec.provenance) | {"arrays": self.spec.model_dump_json(exclude={"root"})}

    @property
    def splits(self) -> Mapping[str, NamedSplit]:
        """None beside `train` and `test`."""
        return {}

    def picture(self, nsd_id: int) -> np.ndarray:
        """uint8 `(height, width, 3)`; a grey picture has three equal channels."""
        values = self._pictures.rows(np.array([nsd_id]))[0]
        if self.spec.pictures.scale is not None:
            black, white = self.spec.pictures.scale
            shares = (values.astype(np.float64) - black) / (white - black)
            if not ((shares >= 0) & (shares <= 1)).all():
                raise InputError(
                    f"Picture {nsd_id} has values from {values.min()} to {values.max()}, beyond "
                    f"pictures.scale [{black:g}, {white:g}]: widen the scale."
                )
            values = np.round(shares * 255).astype(np.uint8)
        return values if values.ndim == 3 else np.repeat(values[..., None], 3, axis=2)

    def captions(self, nsd_id: int) -> list[str]:
        """Captions of the picture, possibly none."""
        return self._captions[nsd_id]

    def is_test(self, subject: str, nsd_id: int, session: int) -> bool:
        """Whether the picture or the session is a test one for the subject."""
        split = self.spec.split
        return nsd_id in _of(split.test_pictures, subject) or session in _of(split.test_sessions, subject)

    def _subject(self, name: str, spec: SubjectSpec) -> _Subject:
        responses = open_array(self._root, spec.responses)
        if len(responses.shape) != 2 or responses.dtype.kind not in "iuf":
            raise InputError(
                f"{name}: responses ({spec.responses}) are {responses.dtype} {responses.shape}: "
                "give numbers (trials, voxels)."
            )
        trials, count = responses.shape[0], self._pictures.shape[0]

        def vector(what: str, reference: str) -> np.ndarray:
            values = integers(open_array(self._root, reference), f"{name}: {what}")
            if len(values) != trials:
                raise InputError(
                    f"{name}: {what} ({reference}) are {len(values)}, responses {trials}: give one each."
                )
            return values

        ids = vector("pictures", spec.pictures) - self.spec.first_picture
        if trials == 0 or ids.min() < 0 or ids.max() >= count:
            raise InputError(
                f"{name}: pictures ({spec.pictures}) run from {ids.min(initial=0)} to {ids.max(initial=0)} "
                f"counted from 0, and there are {count}: check first_picture ({self.spec.first_picture})."
            )
        units = spec.sessions or spec.runs
        sessions = np.ones(trials, np.int64)
        if units:
            sessions = vector("sessions" if spec.sessions else "runs", units) - self.spec.first_session + 1
        if sessions.min() < 1:
            raise InputError(
                f"{name}: sessions start before first_session ({self.spec.first_session}): set it to 0."
            )
        order = vector("order", spec.order) if spec.order else np.arange(trials)
        left_out = self.spec.split.exclude_pictures.get(name, [])
        test = np.array([self.is_test(name, int(n), int(s)) for n, s in zip(ids, sessions, strict=True)])
        table = {key: open_array(self._root, reference) for key, reference in spec.voxel_table.items()}
        return _Subject(responses, ids, sessions, order, test | ~np.isin(ids, left_out), table)

    def _check_split(self, subjects: dict[str, _Subject]) -> None:
        split = self.spec.split
        named = [value for value in (split.test_pictures, split.test_sessions) if isinstance(value, dict)]
        unknown = sorted(
            {name for value in [*named, split.exclude_pictures] for name in value} - set(subjects)
        )
        if unknown:
            raise InputError(f"split names subject {unknown[0]!r}: use one of {sorted(subjects)}.")
        for what in ("test_pictures", "test_sessions", "exclude_pictures"):
            value = getattr(split, what)
            for chosen, names in (
                [(c, [n]) for n, c in value.items()] if isinstance(value, dict) else [(value, [*subjects])]
            ):
                arrays = [
                    s.session_of if what == "test_sessions" else s.nsd_ids
                    for n, s in subjects.items()
                    if n in names
                ]
                there = np.unique(np.concatenate(arrays)).tolist()
                missing = sorted(set(chosen) - set(there))
                if missing:
                    raise InputError(
                        f"split.{what}: {missing} do not occur for {', '.join(names)}: choose from {there}."
                    )


def _of(value: list[int] | BySubject, subject: str) -> list[int]:
    return value.get(subject, []) if isinstance(value, dict) else value
