"""Where each file of the Natural Scenes Dataset lies in the release as published (naturalscenesdataset.org).

Paths are those that the release's own export code writes (github.com/cvnlab/nsddatapaper, `main/export.m` and
`main/analysis_surfaceroistovolume.m`). A file that is asked for and is not there is one sentence that names it
and the part of `fmri2img data fetch nsd` that brings it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fmri2img.errors import InputError

SESSIONS = {
    "subj01": 40, "subj02": 40, "subj03": 32, "subj04": 30,
    "subj05": 40, "subj06": 32, "subj07": 40, "subj08": 30,
}  # fmt: skip
"""Sessions of the NSD experiment that each subject completed."""

TRIALS = 750
"""Trials of a session."""

RUN_TRIALS = (63, 62) * 6
"""Trials of each of a session's twelve runs."""

BETAS = {"b1": "betas_assumehrf", "b2": "betas_fithrf", "b3": "betas_fithrf_GLMdenoise_RR"}
"""Folders of the three beta versions."""

SPACES = ("func1pt8mm", "func1mm")
HEMISPHERES = ("lh", "rh")


@dataclass(frozen=True)
class NsdLayout:
    """The files of a release in `root`, the folder that holds `nsddata`, `nsddata_betas` and the others.

    Each method returns a path that exists, except those called `find_...`, which return None where there is none.

    Raises:
        InputError: `root` is no folder; from the methods, a file that is missing.
    """

    root: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "root", Path(self.root))
        if not self.root.is_dir():
            raise InputError(
                f"{self.root} is no folder: give the one that holds nsddata and nsddata_betas, "
                f"or bring them with: fmri2img data fetch nsd {self.root}"
            )

    @property
    def design(self) -> Path:
        """The experiment's design, `nsd_expdesign.mat`."""
        return self._there("nsddata/experiments/nsd/nsd_expdesign.mat", "design")

    @property
    def stimulus_table(self) -> Path:
        """`nsd_stim_info_merged.csv`, one row for each of the 73,000 pictures."""
        return self._there("nsddata/experiments/nsd/nsd_stim_info_merged.csv", "design")

    @property
    def stimuli(self) -> Path:
        """`nsd_stimuli.hdf5`, all pictures."""
        return self._there("nsddata_stimuli/stimuli/nsd/nsd_stimuli.hdf5", "stimuli")

    def find_captions(self, split: str) -> Path | None:
        """COCO's captions of `train2017` or `val2017`, which are no part of the release itself."""
        return self._find(f"nsddata_stimuli/stimuli/nsd/annotations/captions_{split}.json")

    def find_behaviour(self, subject: str) -> Path | None:
        """A subject's `responses.tsv`, one row for each trial."""
        return self._find(f"nsddata/ppdata/{known_subject(subject)}/behav/responses.tsv")

    def betas(self, subject: str, space: str, version: str, session: int) -> Path:
        """Single-trial betas of one session, `.hdf5` or else `.nii.gz`."""
        name = f"{self._betas(subject, known(space, SPACES, 'space'), version)}/betas_session{session:02d}"
        found = self._find(f"{name}.nii.gz")
        if found is not None and self._find(f"{name}.hdf5") is None:
            return found
        return self._there(
            f"{name}.hdf5", "betas", f" --subjects {subject} --betas {version} --space {space}"
        )

    def find_ncsnr(self, subject: str, space: str, version: str) -> Path | None:
        """The volume of noise-ceiling signal-to-noise ratios."""
        return self._find(f"{self._betas(subject, known(space, SPACES, 'space'), version)}/ncsnr.nii.gz")

    def surface_betas(self, subject: str, version: str, hemisphere: str, session: int) -> Path:
        """Single-trial betas of one session on fsaverage, `.mgh`, or `.mgz` as some mirrors have them."""
        folder = f"{self._betas(subject, 'fsaverage', version)}"
        name = f"{folder}/{known(hemisphere, HEMISPHERES, 'hemisphere')}.betas_session{session:02d}"
        return self._find(f"{name}.mgz") or self._there(
            f"{name}.mgh", "fsaverage", f" --subjects {subject} --betas {version}"
        )

    def find_surface_ncsnr(self, subject: str, version: str, hemisphere: str) -> Path | None:
        """Noise-ceiling signal-to-noise ratios on fsaverage."""
        name = f"{self._betas(subject, 'fsaverage', version)}/{hemisphere}.ncsnr"
        return self._find(f"{name}.mgh") or self._find(f"{name}.mgz")

    def roi(self, subject: str, space: str, name: str) -> Path:
        """An ROI volume, such as `nsdgeneral`, or `lh.nsdgeneral` of one hemisphere."""
        folder = f"nsddata/ppdata/{known_subject(subject)}/{known(space, SPACES, 'space')}/roi"
        known(name, self.rois(subject, space) or [name], f"ROI of {subject} in {space}")
        return self._there(f"{folder}/{name}.nii.gz", "rois", f" --subjects {subject} --space {space}")

    def rois(self, subject: str, space: str) -> list[str]:
        """Names of the ROI volumes there are, in alphabetical order."""
        folder = self.root / f"nsddata/ppdata/{subject}/{space}/roi"
        return sorted(path.name.removesuffix(".nii.gz") for path in folder.glob("*.nii.gz"))

    def find_labels(self, owner: str, name: str) -> Path | None:
        """The table of an ROI volume's labels, of a subject or of `fsaverage`."""
        return self._find(f"nsddata/freesurfer/{owner}/label/{name}.mgz.ctab")

    def surface_roi(self, owner: str, hemisphere: str, name: str) -> Path:
        """An ROI on a surface, of a subject or of `fsaverage`."""
        known(hemisphere, HEMISPHERES, "hemisphere")
        return self._there(f"nsddata/freesurfer/{owner}/label/{hemisphere}.{name}.mgz", "fsaverage")

    def timeseries(self, subject: str, space: str, session: int, run: int) -> Path:
        """The preprocessed time series of one run."""
        return self._there(
            self._series(
                subject, space, "timeseries", f"timeseries_session{session:02d}_run{run:02d}.nii.gz"
            ),
            "timeseries",
            f" --subjects {subject} --space {space}",
        )

    def timeseries_runs(self, subject: str, space: str, session: int) -> list[int]:
        """Numbers of the runs of a session whose time series are there, ascending."""
        folder = self.root / self._series(subject, space, "timeseries", "")
        names = [path.name for path in folder.glob(f"timeseries_session{session:02d}_run??.nii.gz")]
        return sorted(int(name[-9:-7]) for name in names if name[-9:-7].isdigit())

    def run_design(self, subject: str, space: str, session: int, run: int) -> Path:
        """What was shown at each volume of a run: a 73k id from 1, or 0."""
        return self._there(
            self._series(subject, space, "design", f"design_session{session:02d}_run{run:02d}.tsv"),
            "timeseries",
            f" --subjects {subject} --space {space}",
        )

    def _series(self, subject: str, space: str, kind: str, name: str) -> str:
        known(space, SPACES, "space")
        return f"nsddata_timeseries/ppdata/{known_subject(subject)}/{space}/{kind}/{name}"

    def _betas(self, subject: str, space: str, version: str) -> str:
        known(version, list(BETAS), "beta version")
        return f"nsddata_betas/ppdata/{known_subject(subject)}/{space}/{BETAS[version]}"

    def _find(self, name: str) -> Path | None:
        path = self.root / name
        return path if path.is_file() else None

    def _there(self, name: str, part: str, flags: str = "") -> Path:
        path = self.root / name
        if not path.is_file():
            raise InputError(
                f"{path} is missing: bring it with: fmri2img data fetch nsd {self.root} --parts {part}{flags}"
            )
        return path


def known_subject(subject: str) -> str:
    """`subject`, if NSD has it."""
    return known(subject, list(SESSIONS), "subject")


def known(value: str, choices: list[str] | tuple[str, ...], what: str) -> str:
    """`value`, if it is one of `choices`.

    Raises:
        InputError: it is not.
    """
    if value not in choices:
        raise InputError(f"{value!r} is no {what} of NSD: use one of {', '.join(choices)}.")
    return value
