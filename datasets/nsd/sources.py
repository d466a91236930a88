"""The three ways to take responses from the NSD release: betas of volumes, betas of fsaverage, time series.

Each names what is missing when it is made, not after an hour's reading.
"""

from __future__ import annotations

from collections.abc import Sequence

from fmri2img.datasets.nsd.layout import BETAS, HEMISPHERES
from fmri2img.datasets.nsd.regions import select_voxels
from fmri2img.datasets.nsd.release import NsdRelease, NsdSource, NsdSubject
from fmri2img.datasets.nsd.selection import MostVarying
from fmri2img.datasets.nsd.surface import SurfaceSubject
from fmri2img.datasets.nsd.timeseries import SeriesOptions, SeriesSubject
from fmri2img.datasets.nsd.vertices import select_vertices
from fmri2img.datasets.source import SubjectSource
from fmri2img.errors import InputError

PERCENT = "per cent signal change before normalisation"


def betas_source(
    release: NsdRelease,
    *,
    version: str = "b3",
    rois: Sequence[str] = ("nsdgeneral",),
    space: str = "func1pt8mm",
) -> NsdSource:
    """Single-trial betas in a volume space.

    Args:
        release: subjects, sessions and pictures.
        version: `b1`, `b2` or `b3`.
        rois: voxels of these ROIs, see `select_voxels`.
        space: `func1pt8mm` or `func1mm`.

    Raises:
        InputError: an unknown space, beta version or ROI, or a missing file.
        DamageError: a damaged file.
    """
    layout, design = release.layout, release.design
    release.check_files()
    subjects: dict[str, SubjectSource] = {}
    for name in release.names:
        for session in release.sessions(name):
            layout.betas(name, space, version, session)
        chosen = select_voxels(layout, name, rois, space=space, version=version)
        subjects[name] = NsdSubject(
            layout, design, name, space, version, chosen, release.sessions(name), release.behaviour(name)
        )
    details = {"betas": f"{version} ({BETAS[version]})", "space": space, "rois": ", ".join(rois)}
    return NsdSource(release, subjects, details | {"units": PERCENT})


def surface_source(
    release: NsdRelease, *, version: str = "b3", rois: Sequence[str] = ("nsdgeneral",)
) -> NsdSource:
    """Single-trial betas on fsaverage.

    Args:
        release: subjects, sessions and pictures.
        version: `b1`, `b2` or `b3`.
        rois: vertices of these labels or masks, see `select_vertices`.

    Raises:
        InputError: an unknown beta version or label, or a missing file.
        DamageError: a damaged file.
    """
    layout, design = release.layout, release.design
    release.check_files()
    vertices = select_vertices(layout, rois)
    subjects: dict[str, SubjectSource] = {}
    for name in release.names:
        sessions = release.sessions(name)
        for session in sessions:
            for hemisphere in HEMISPHERES:
                layout.surface_betas(name, version, hemisphere, session)
        subjects[name] = SurfaceSubject(
            layout, design, name, version, vertices, sessions, release.behaviour(name)
        )
    details = {"betas": f"{version} ({BETAS[version]})", "space": "fsaverage", "rois": ", ".join(rois)}
    return NsdSource(release, subjects, details | {"units": PERCENT})


def timeseries_source(
    release: NsdRelease, options: SeriesOptions, *, rois: Sequence[str] = ("nsdgeneral",)
) -> NsdSource:
    """Windows of the preprocessed time series after each onset.

    Args:
        release: subjects, sessions and pictures.
        options: window, drift, units.
        rois: voxels of these ROIs, see `select_voxels`; or alone `std:0.05` or `std:15000`, the voxels that
            vary most.

    Raises:
        InputError: an unknown ROI, `std:` beside others, or a missing file.
        DamageError: a damaged file.
    """
    layout, design = release.layout, release.design
    release.check_files()
    varying = [found for found in map(MostVarying.parse, rois) if found is not None]
    if varying and len(rois) > 1:
        raise InputError(f"--rois {' '.join(rois)}: std: chooses among all voxels, so name it alone.")
    subjects: dict[str, SubjectSource] = {}
    for name in release.names:
        sessions = release.sessions(name)
        for session in sessions:
            layout.timeseries(name, options.space, session, 1)
        chosen = (
            varying[0] if varying else select_voxels(layout, name, rois, space=options.space, version="b3")
        )
        subjects[name] = SeriesSubject(
            layout,
            design,
            name,
            options,
            chosen,
            sessions,
            lambda nsd_id, session: design.is_shared(nsd_id),
            release.behaviour(name),
        )
    return NsdSource(
        release, subjects, {"betas": "none: time series"} | options.describe() | {"rois": ", ".join(rois)}
    )
