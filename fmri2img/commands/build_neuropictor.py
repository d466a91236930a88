"""`fmri2img data build neuropictor`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from fmri2img.commands.building import build, names_of


@dataclass(frozen=True)
class BuildNeuropictor:
    """Make a data set of NeuroPictor's flat maps, one for each subject and picture."""

    out: Positional[Path]
    """the folder to make"""
    root: Path
    """the folder of Fudan-fMRI/neuropictor, with the archives in its NSD folder unpacked"""
    subjects: tuple[str, ...] = ()
    """subj01 to subj08; all there are otherwise"""
    whole_map: bool = False
    """keep the pixels that are empty in every training map"""
    normalise: Literal["pooled", "none"] = "none"
    """z-score each pixel with all training maps; the maps are normalised as they come"""
    samples_per_shard: int = 64
    """pictures of one subject in a shard"""

    def run(self) -> None:
        from fmri2img.datasets.prepared.neuropictor import NeuroPictorSource

        names = names_of(self.subjects)
        build(
            NeuroPictorSource(self.root, names, self.whole_map),
            self.out,
            samples_per_shard=self.samples_per_shard,
            normalise=self.normalise,
            unit="maps",
        )
