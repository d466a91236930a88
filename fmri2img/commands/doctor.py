"""`fmri2img doctor`: is this node, or this cluster, fit for a job."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Doctor:
    """Examine this node or a cluster: versions, devices, limits, disks, clocks, collectives, data and checkpoint."""

    cluster: str | None = None
    """address of a running Ray cluster, or auto; this node alone otherwise"""
    data: Path | None = None
    """a data set that must open"""
    checkpoint: Path | None = None
    """a run or step folder that must verify"""
    out: Path | None = None
    """a run folder that must take files; the speed of writing there is measured"""
    json: bool = False
    """print JSON"""

    def run(self) -> None:
        import json

        from fmri2img.errors import Fmri2imgError
        from fmri2img.launch.doctor import examine, failed, show_findings

        found = examine(address=self.cluster, data=self.data, checkpoint=self.checkpoint, out=self.out)
        if self.json:
            print(json.dumps([finding.model_dump() for finding in found], indent=2))
        else:
            show_findings(found)
        if bad := failed(found):
            names = ", ".join(f"{finding.check} ({finding.node})" for finding in bad)
            raise Fmri2imgError(f"{len(bad)} checks failed: {names}; what to do stands above")
