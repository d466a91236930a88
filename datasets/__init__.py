"""What a data set folder is: manifest, shards, index, sampling plan, and the ways in."""

from fmri2img.datasets.arrays import ArraysSource
from fmri2img.datasets.arrays_spec import ArraysSpec
from fmri2img.datasets.build import build_dataset
from fmri2img.datasets.dataset import Dataset
from fmri2img.datasets.feature_import import import_features
from fmri2img.datasets.features import add_feature_space
from fmri2img.datasets.info import info
from fmri2img.datasets.manifest import DatasetManifest, FeatureSpaceEntry
from fmri2img.datasets.plan import SamplingPlan, hold_out
from fmri2img.datasets.samples import Samples
from fmri2img.datasets.source import NamedSplit, Progress, SessionTrials, SubjectSource, TrialSource
from fmri2img.datasets.verify import Problem, verify

__all__ = [
    "ArraysSource",
    "ArraysSpec",
    "Dataset",
    "DatasetManifest",
    "FeatureSpaceEntry",
    "NamedSplit",
    "Problem",
    "Progress",
    "Samples",
    "SamplingPlan",
    "SessionTrials",
    "SubjectSource",
    "TrialSource",
    "add_feature_space",
    "build_dataset",
    "hold_out",
    "import_features",
    "info",
    "verify",
]
