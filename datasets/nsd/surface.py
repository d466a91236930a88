"""Single-trial betas of the NSD release on fsaverage, as a subject of a trial source.

`[lh,rh].betas_sessionSS.mgh` holds `(vertices, 1, 1, trials)` float32 in per cent signal change, not multiplied
by 300 as the volumes are, and NaN where a session has no valid data (NSD data manual, "Single-trial GLM results
in group spaces").
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from fmri2img.datasets.nsd.design import Design
from fmri2img.datasets.nsd.layout import HEMISPHERES, NsdLayout
from fmri2img.datasets.nsd.regions import noise_ceiling
from fmri2img.datasets.nsd.vertices import Vertices
from fmri2img.datasets.nsd.volumes import VolumeFile, open_volumes, read_volume
from fmri2img.datasets.source import SessionTrials
from fmri2img.errors import DamageError, InputError


@dataclass
class SurfaceSubject:
    """One subject's surface betas, as a `SubjectSource`; a session is in memory at a time.

    Attributes:
        layout, design: the release.
        subject: its id, `subj01` to `subj08`.
        version: of the betas, `b1` to `b3`.
        select: the vertices asked for; those without valid data in some session are left out.
        sessions: numbers, ascending.
        behaviour: numbers `(750,)` of a session by name.
    """

    layout: NsdLayout
    design: Design
    subject: str
    version: str
    select: Vertices
    sessions: Sequence[int]
    behaviour: Callable[[int], Mapping[str, np.ndarray]] = lambda session: {}

    @cached_property
    def vertices(self) -> Vertices:
        """The chosen vertices with data in every session, judged by each session's first trial."""
        valid = np.ones(len(self.select.positions), bool)
        for session in self.sessions:
            for hemisphere in HEMISPHERES:
                inside = self.select.table["hemisphere"] == hemisphere
                with closing(self._file(hemisphere, session).read(self.select.of(hemisphere))) as frames:
                    valid[inside] &= np.isfinite(next(frames))
        if not valid.any():
            raise InputError(f"{self.subject}: none of the vertices has data in every session.")
        return self.select.only(valid)

    @property
    def voxels(self) -> int:
        """Number of vertices kept."""
        return len(self.vertices.positions)

    def voxel_table(self) -> dict[str, np.ndarray]:
        """`hemisphere`, `vertex`, `roi`, the label files, and `ncsnr` and `noise_ceiling` where the release has it."""
        parts = []
        for side, count in zip(HEMISPHERES, self.select.counts, strict=True):
            path = self.layout.find_surface_ncsnr(self.subject, self.version, side)
            if path is None:
                return dict(self.vertices.table)
            values = read_volume(path)
            if values.shape != (count,):
                raise DamageError(
                    f"{path} has {values.shape} values, and {side} has {count} vertices. Fetch it again."
                )
            parts.append(values[self.vertices.of(side)])
        ncsnr = np.nan_to_num(np.concatenate(parts), nan=0.0, posinf=0.0, neginf=0.0)
        ceilings = {"ncsnr": ncsnr.astype(np.float32), "noise_ceiling": noise_ceiling(ncsnr)}
        return self.vertices.table | ceilings

    def session(self, session: int) -> SessionTrials:
        """The 750 trials, float32 `(trials, vertices)`, per cent signal change."""
        nsd_ids = self.design.nsd_ids(self.subject, session)
        responses = np.empty((len(nsd_ids), self.voxels), np.float32)
        left = len(self.vertices.of("lh"))
        for hemisphere, columns in zip(HEMISPHERES, (slice(0, left), slice(left, None)), strict=True):
            file = self._file(hemisphere, session)
            for trial, values in enumerate(file.read(self.vertices.of(hemisphere))):
                responses[trial, columns] = values
                if not np.isfinite(values).all():
                    raise DamageError(
                        f"{file.path}, trial {trial + 1}: {int((~np.isfinite(values)).sum())} vertices are not "
                        "a number, though the first trial's are. Fetch it again."
                    )
        return SessionTrials(responses, nsd_ids, behaviour=dict(self.behaviour(session)))

    def _file(self, hemisphere: str, session: int) -> VolumeFile:
        file = open_volumes(self.layout.surface_betas(self.subject, self.version, hemisphere, session))
        count = self.select.counts[HEMISPHERES.index(hemisphere)]
        trials = len(self.design.nsd_ids(self.subject, session))
        if file.shape != (count,) or file.volumes != trials or file.dtype.kind != "f":
            raise DamageError(
                f"{file.path} holds {file.dtype} {(*file.shape, file.volumes)}, and must hold decimal numbers "
                f"{(count, trials)}, vertices and trials. Fetch it again, or bring labels of its surface."
            )
        return file
