"""What a data set folder is: manifest, shards, index, sampling plan, and the ways in."""

from fmri2img.datasets.source import SessionTrials, SubjectSource, TrialSource

__all__ = ["SessionTrials", "SubjectSource", "TrialSource"]
