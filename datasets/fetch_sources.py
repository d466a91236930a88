"""What the published sources of data consist of: addresses, subjects, parts, and the files of each part.

Facts are those of the NSD data manual and of the repositories that publish the prepared sets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fmri2img.datasets.nsd.layout import BETAS, SESSIONS, SPACES
from fmri2img.errors import InputError

COMPLETE = ("subj01", "subj02", "subj05", "subj07")


@dataclass(frozen=True)
class Part:
    """Files that belong together.

    Attributes:
        about: what they are, in a line.
        files: patterns under the source's address, with `{subject}`, `{number}` (01), `{betas}` and `{space}`.
        usual: fetched unless parts are named.
        address: where they are, if not at the source's.
        folder: where they go in the folder fetched into, if not to the place that they have at the source.
        members: of a zip file, those to unpack beside it.
    """

    about: str
    files: tuple[str, ...]
    usual: bool = True
    address: str | None = None
    folder: str | None = None
    members: tuple[str, ...] = ()


@dataclass(frozen=True)
class Source:
    """A published source; `options` are fsspec's, by protocol."""

    name: str
    about: str
    address: str
    subjects: tuple[str, ...]
    parts: Mapping[str, Part]
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Wanted:
    """Files to fetch: a pattern under an address, and where they go."""

    part: str
    address: str
    pattern: str
    folder: str | None
    members: tuple[str, ...]


_NSD_BETAS = "nsddata_betas/ppdata/{subject}/{space}/{betas}"
_NSD_SURFACE = "nsddata_betas/ppdata/{subject}/fsaverage/{betas}"
_NSD_SERIES = "nsddata_timeseries/ppdata/{subject}/{space}"
_CAPTIONS = Part(
    "captions of the 73,000 pictures",
    ("COCO_73k_annots_curated.npy",),
    address="hf://datasets/pscotti/naturalscenesdataset",
    folder="",
)

NSD = Source(
    name="nsd",
    about="the Natural Scenes Dataset as released (Allen et al. 2022)",
    address="s3://natural-scenes-dataset",
    subjects=tuple(SESSIONS),
    options={"s3": {"anon": True, "client_kwargs": {"region_name": "us-east-2"}}},
    parts={
        "design": Part(
            "which picture was shown when, and what was answered",
            (
                "nsddata/experiments/nsd/nsd_expdesign.mat",
                "nsddata/experiments/nsd/nsd_stim_info_merged.csv",
                "nsddata/ppdata/{subject}/behav/responses.tsv",
            ),
        ),
        "rois": Part(
            "ROI volumes and their labels",
            (
                "nsddata/ppdata/{subject}/{space}/roi/*.nii.gz",
                "nsddata/freesurfer/{subject}/label/*.mgz.ctab",
            ),
        ),
        "betas": Part(
            "single-trial responses, and the noise ceiling's signal-to-noise ratio",
            (f"{_NSD_BETAS}/betas_session??.hdf5", f"{_NSD_BETAS}/ncsnr.nii.gz"),
        ),
        "stimuli": Part("the 73,000 pictures", ("nsddata_stimuli/stimuli/nsd/nsd_stimuli.hdf5",)),
        "captions": Part(
            "COCO's captions, of which the pictures' are taken",
            ("annotations_trainval2017.zip",),
            address="http://images.cocodataset.org/annotations",
            folder="nsddata_stimuli/stimuli/nsd/annotations",
            members=("annotations/captions_train2017.json", "annotations/captions_val2017.json"),
        ),
        "timeseries": Part(
            "preprocessed volumes of every run, and what was shown at each",
            (
                f"{_NSD_SERIES}/timeseries/timeseries_session??_run??.nii.gz",
                f"{_NSD_SERIES}/design/design_session??_run??.tsv",
            ),
            usual=False,
        ),
        "fsaverage": Part(
            "single-trial responses on fsaverage, and ROIs there",
            (
                f"{_NSD_SURFACE}/?h.betas_session??.mgh",
                f"{_NSD_SURFACE}/?h.ncsnr.mgh",
                "nsddata/freesurfer/fsaverage/label/*.mgz",
                "nsddata/freesurfer/fsaverage/label/*.mgz.ctab",
            ),
            usual=False,
        ),
    },
)

MINDEYE2 = Source(
    name="mindeye2",
    about="NSD as MindEye2 prepared it (Scotti et al. 2024)",
    address="hf://datasets/pscotti/mindeyev2",
    subjects=tuple(SESSIONS),
    parts={
        "betas": Part("z-scored responses of nsdgeneral", ("betas_all_{subject}_fp32_renorm.hdf5",)),
        "trials": Part(
            "which trial is which, with behaviour",
            ("wds/{subject}/train/*.tar", "wds/{subject}/new_test/*.tar"),
        ),
        "stimuli": Part("the 73,000 pictures at 224 x 224", ("coco_images_224_float16.hdf5",)),
        "rois": Part("ROI masks within nsdgeneral", ("brain_region_masks.hdf5",)),
        "captions": _CAPTIONS,
        "old_test": Part("the test trials of the first sessions", ("wds/{subject}/test/*.tar",), usual=False),
    },
)

MINDEYE1 = Source(
    name="mindeye1",
    about="NSD as MindEye1 prepared it (Scotti et al. 2023)",
    address="hf://datasets/pscotti/naturalscenesdataset",
    subjects=COMPLETE,
    parts={
        "trials": Part(
            "responses of nsdgeneral and the whole brain, with the pictures",
            (
                "webdataset_avg_split/*/*_{subject}_*.tar",
                "webdataset_avg_split/metadata_{subject}.json",
            ),
        ),
        "captions": _CAPTIONS,
    },
)

NEUROPICTOR = Source(
    name="neuropictor",
    about="NSD as flat maps of visual cortex, as NeuroPictor prepared it (Huo et al. 2024)",
    address="hf://datasets/Fudan-fMRI/neuropictor",
    subjects=tuple(SESSIONS),
    parts={
        "maps": Part(
            "one map of 256 x 256 for each subject and picture",
            ("NSD/fmri_npy/{number}_norm*", "NSD/fmri_npy/{number}_label.npy"),
        ),
        "design": Part(
            "test pictures, and the crop of the maps", ("NSD/sub1257_shared_triallabel.npy", "NSD/vc_roi.npz")
        ),
        "stimuli": Part("the pictures", ("NSD/nsddata_stimuli/*",)),
        "captions": Part("captions of the pictures", ("NSD/COCO_73k_annots_curated.npy",)),
    },
)

SOURCES = {source.name: source for source in (NSD, MINDEYE2, MINDEYE1, NEUROPICTOR)}
"""Every source; all are NSD or derived from it, and under its terms."""


def wanted(
    source: Source,
    *,
    subjects: Sequence[str] = (),
    parts: Sequence[str] = (),
    betas: str = "b3",
    space: str = "func1pt8mm",
    mirror: str | None = None,
) -> list[Wanted]:
    """The files of a source that were chosen: all subjects and the usual parts unless they are named.

    Args:
        betas: version of NSD's betas, `b1`, `b2` or `b3`.
        space: of NSD's volumes.
        mirror: address of a copy of the source, taken instead for every part.

    Raises:
        InputError: a subject, part, version or space is none of the source's.
    """
    subjects, parts = tuple(subjects) or source.subjects, tuple(parts) or _usual(source)
    for what, chosen, known in (
        ("subject", subjects, source.subjects),
        ("part", parts, tuple(source.parts)),
        ("beta version", (betas,), tuple(BETAS)),
        ("space", (space,), SPACES),
    ):
        for one in chosen:
            if one not in known:
                raise InputError(f"{one!r} is no {what} of {source.name}: use {', '.join(known)}.")
    found: dict[Wanted, None] = {}
    for name in dict.fromkeys(parts):
        part = source.parts[name]
        address = (mirror or part.address or source.address).rstrip("/")
        for pattern in part.files:
            for subject in subjects:
                file = pattern.format(subject=subject, number=subject[-2:], betas=BETAS[betas], space=space)
                found[Wanted(name, address, file, part.folder, part.members)] = None
    return list(found)


def _usual(source: Source) -> tuple[str, ...]:
    return tuple(name for name, part in source.parts.items() if part.usual)
