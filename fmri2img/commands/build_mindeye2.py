"""`fmri2img data build mindeye2`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from fmri2img.commands.building import build, names_of


@dataclass(frozen=True)
class BuildMindEye2:
    """Make a data set of MindEye2's published betas, tars and pictures (huggingface.co/datasets/pscotti/mindeyev2)."""

    out: Positional[Path]
    """the folder to make"""
    root: Path
    """the folder with wds, the betas and coco_images_224_float16.hdf5"""
    subjects: tuple[str, ...]
    """subj01 to subj08"""
    sessions: int | None = None
    """training trials of sessions 1 to this one only; test trials are of all sessions"""
    captions: Path | None = None
    """COCO_73k_annots_curated.npy; the one in --root otherwise, if it is there"""
    normalise: Literal["none", "session", "pooled"] = "none"
    """the betas come z-scored by session, by published code that counts test trials in; session or pooled does it
    again from training trials"""
    samples_per_shard: int = 64
    """pictures of one subject in a shard"""

    def run(self) -> None:
        from fmri2img.datasets.prepared.mindeye2 import MindEye2Source

        names = names_of(self.subjects)
        source = MindEye2Source(self.root, names, last_session=self.sessions, captions=self.captions)
        build(source, self.out, normalise=self.normalise, samples_per_shard=self.samples_per_shard)
