"""`fmri2img data build nsd`."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, arg

from fmri2img.commands.building import build, names_of
from fmri2img.console import output
from fmri2img.errors import InputError

if TYPE_CHECKING:
    from fmri2img.datasets.nsd.release import NsdRelease, NsdSource

SERIES = ("window", "keep", "detrend", "high_pass", "units", "tr")


@dataclass(frozen=True)
class BuildNsd:
    """Make a data set of the Natural Scenes Dataset's release as it is published."""

    out: Positional[Path]
    """the folder to make"""
    release: Path
    """the folder that holds nsddata, nsddata_betas and nsddata_stimuli"""
    subjects: tuple[str, ...]
    """subj01 to subj08"""
    from_: Annotated[Literal["betas", "timeseries", "fsaverage"], arg(name="from")] = "betas"
    """what a response is: a beta of a voxel, a window of the time series, or a beta of a vertex of fsaverage"""
    betas: Literal["b1", "b2", "b3"] = "b3"
    """b1 is betas_assumehrf, b2 betas_fithrf, b3 betas_fithrf_GLMdenoise_RR"""
    rois: tuple[str, ...] = ("nsdgeneral",)
    """voxels of these ROI volumes together; prf-visualrois:V1v is one label; of time series also std:0.05 or
    std:15000, the voxels that vary most"""
    space: Literal["func1pt8mm", "func1mm"] = "func1pt8mm"
    """resolution of the volumes"""
    sessions: str | None = None
    """1..K for the first K sessions; all otherwise"""
    picture_size: int | None = None
    """pixels of a side to make pictures smaller; 425 otherwise"""
    normalise: Literal["session", "pooled", "none"] = "session"
    """z-score with training trials of each session, of all sessions, or not at all"""
    samples_per_shard: int = 64
    """pictures of one subject in a shard"""
    window: tuple[float, float] | None = None
    """time series: seconds after onset, from the first to before the second; 4 8 otherwise"""
    keep: Literal["average", "window"] | None = None
    """time series: one number a voxel, or every volume of the window; average otherwise"""
    detrend: int | None = None
    """time series: order of the polynomial taken out of each run; 1 otherwise"""
    high_pass: float | None = None
    """time series: slower periods, in seconds, are taken out; 0 for none; 128 otherwise"""
    units: Literal["percent", "zscore", "raw"] | None = None
    """time series: of a voxel over its run; percent otherwise"""
    tr: float | None = None
    """time series: seconds between volumes; the space's own otherwise"""

    def run(self) -> None:
        from fmri2img.datasets.nsd.release import NsdRelease

        names = names_of(self.subjects)
        release = NsdRelease(self.release, names, _last(self.sessions), self.picture_size)
        source = self._source(release)
        if release.captions is None:
            output().print("No COCO captions in the release's folder: the data set will have none.")
        build(source, self.out, samples_per_shard=self.samples_per_shard, normalise=self.normalise)

    def _source(self, release: "NsdRelease") -> "NsdSource":
        from fmri2img.datasets.nsd.sources import betas_source, surface_source, timeseries_source
        from fmri2img.datasets.nsd.timeseries import SeriesOptions

        given: dict[str, Any] = {name: value for name in SERIES if (value := getattr(self, name)) is not None}
        if given and self.from_ != "timeseries":
            flag = next(iter(given)).replace("_", "-")
            raise InputError(f"--{flag} is of time series: drop it, or add --from timeseries.")
        if self.from_ == "timeseries":
            return timeseries_source(release, SeriesOptions(space=self.space, **given), rois=self.rois)
        if self.from_ == "fsaverage":
            return surface_source(release, version=self.betas, rois=self.rois)
        return betas_source(release, version=self.betas, rois=self.rois, space=self.space)


def _last(sessions: str | None) -> int | None:
    """K of `1..K`, or of `K` alone."""
    if sessions is None:
        return None
    last = sessions.removeprefix("1..")
    if not last.isdigit():
        raise InputError(f"--sessions {sessions}: sessions start with the first: give 1..K, such as 1..5.")
    return int(last)
