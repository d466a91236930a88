"""`fmri2img data build braindiffuser`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from fmri2img.commands.building import build, names_of


@dataclass(frozen=True)
class BuildBrainDiffuser:
    """Make a data set of the arrays that Brain-Diffuser's prepare_nsddata.py writes."""

    out: Positional[Path]
    """the folder to make"""
    root: Path
    """the folder with processed_data"""
    subjects: tuple[str, ...]
    """subj01 to subj08"""
    design: Path | None = None
    """nsd_expdesign.mat, which says of which pictures the rows are; the one of the download in --root otherwise"""
    normalise: Literal["pooled", "none"] = "pooled"
    """z-score with all training pictures, as Brain-Diffuser does, or not at all"""
    samples_per_shard: int = 64
    """pictures of one subject in a shard"""

    def run(self) -> None:
        from fmri2img.datasets.prepared.braindiffuser import BrainDiffuserSource

        names = names_of(self.subjects)
        source = BrainDiffuserSource(self.root, names, design=self.design)
        build(source, self.out, normalise=self.normalise, samples_per_shard=self.samples_per_shard)
