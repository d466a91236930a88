"""`fmri2img data build mindeye1`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from fmri2img.commands.building import build, names_of


@dataclass(frozen=True)
class BuildMindEye1:
    """Make a data set of MindEye1's published tars (webdataset_avg_split of pscotti/naturalscenesdataset)."""

    out: Positional[Path]
    """the folder to make"""
    root: Path
    """webdataset_avg_split, webdataset_avg_new, or the folder that has the first"""
    subjects: tuple[str, ...]
    """subj01 to subj08"""
    captions: Path | None = None
    """COCO_73k_annots_curated.npy; the one in --root or above it otherwise, if it is there"""
    normalise: Literal["none", "pooled"] = "none"
    """the responses come z-scored by session; pooled does it again from all training trials"""
    samples_per_shard: int = 64
    """pictures of one subject in a shard"""

    def run(self) -> None:
        from fmri2img.datasets.prepared.mindeye1 import MindEye1Source

        names = names_of(self.subjects)
        source = MindEye1Source(self.root, names, captions=self.captions)
        build(source, self.out, normalise=self.normalise, samples_per_shard=self.samples_per_shard)
