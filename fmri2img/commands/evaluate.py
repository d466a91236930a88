"""`fmri2img evaluate`: score a reconstruction."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from fmri2img.console import output


@dataclass(frozen=True)
class Evaluate:
    """Score a reconstruction with the field's metrics, each with an interval, published results beside them."""

    made: Positional[Path]
    """the folder of the reconstruction"""
    data: Path | None = None
    """the data set folder; where the reconstruction was made from otherwise"""
    pool: int = 300
    """pictures in a retrieval pool"""
    candidates: Literal["split", "subject"] = "split"
    """identify among the pictures of the split, or among all that the subject saw"""
    networks: tuple[str, ...] = ()
    """CLIP models that look at pictures made and seen and identify them, such as simulation/clip"""
    protocol: Literal["simulation", "mindeye2", "brain-diffuser", "neuropictor"] = "simulation"
    """measure pictures as a published code does, with its networks; simulation: pixels and features alone"""
    brain: str | None = None
    """a feature space: brain correlation by ROI, through ridge regression from it to the voxels"""
    captions: Path | None = None
    """a JSON file of predicted captions by item key or nsd_id: ROUGE, METEOR and sentence similarity"""
    audit: Literal["none", "features", "pictures"] = "none"
    """score what knows less beside it: shuffled and mean responses, nearest training pictures; see docs/audit.md"""
    devices: str = "auto"
    """auto, cpu, cuda, or a GPU of this machine such as cuda:0, for the networks"""

    def run(self) -> None:
        from fmri2img.launch import jobs

        data = jobs.source_of(self.made, self.data)
        result = jobs.evaluation(
            self.made,
            data,
            candidates=self.candidates,
            captions=self.captions,
            devices=self.devices,
            pool=self.pool,
            networks=list(self.networks),
            protocol=None if self.protocol == "simulation" else self.protocol,
            brain=self.brain,
            audited=self.audit,
        )
        jobs.show({self.made.name: result})
        jobs.show_published(self.made.name, result)
        jobs.show_audit(self.made)
        output().print(f"Scores in {self.made / jobs.EVALUATION}; next: fmri2img report {self.made}")
