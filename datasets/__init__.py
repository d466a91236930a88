"""What a data set folder is: manifest, shards, index, sampling plan, and the ways in."""

from fmri2img.datasets.build import build_dataset
from fmri2img.datasets.dataset import Dataset
from fmri2img.datasets.manifest import DatasetManifest, FeatureSpaceEntry
from fmri2img.datasets.samples import Samples
from fmri2img.datasets.source import Progress, SessionTrials, SubjectSource, TrialSource

__all__ = [
    "Dataset",
    "DatasetManifest",
    "FeatureSpaceEntry",
    "Progress",
    "Samples",
    "SessionTrials",
    "SubjectSource",
    "TrialSource",
    "build_dataset",
]
