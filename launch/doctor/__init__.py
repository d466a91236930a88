"""Is this node or this cluster fit for a job: facts of nodes, what they must be, and what to do where they are not."""

from fmri2img.launch.doctor.examination import examine, preflight
from fmri2img.launch.doctor.findings import Finding, failed, show_findings

__all__ = ["Finding", "examine", "failed", "preflight", "show_findings"]
