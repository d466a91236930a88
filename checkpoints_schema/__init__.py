"""What a checkpoint folder is: typed manifest, commit protocol, and readers that verify before they load."""

from fmri2img.checkpoints_schema.card import model_card
from fmri2img.checkpoints_schema.commit import (
    clean_stale,
    commit,
    discard,
    file_records,
    new_token,
    stage,
    staging_path,
    step_path,
)
from fmri2img.checkpoints_schema.manifest import (
    CARD_NAME,
    CONFIG_NAME,
    MANIFEST_NAME,
    MODEL_NAME,
    SCHEMA_VERSION,
    CheckpointManifest,
    FeatureSpaceRecord,
    FileRecord,
    ParentRecord,
    SubjectRecord,
)
from fmri2img.checkpoints_schema.read import (
    CHECKPOINTS_FOLDER,
    Found,
    Problem,
    find_latest,
    parse_step,
    read_manifest,
    resolve,
    step_name,
    verify,
)
from fmri2img.checkpoints_schema.subjects import check_subjects, other_data
from fmri2img.checkpoints_schema.tensors import load_tensors, save_tensors

__all__ = [
    "CARD_NAME",
    "CHECKPOINTS_FOLDER",
    "CONFIG_NAME",
    "MANIFEST_NAME",
    "MODEL_NAME",
    "SCHEMA_VERSION",
    "CheckpointManifest",
    "FeatureSpaceRecord",
    "FileRecord",
    "Found",
    "ParentRecord",
    "Problem",
    "SubjectRecord",
    "check_subjects",
    "clean_stale",
    "commit",
    "discard",
    "file_records",
    "find_latest",
    "load_tensors",
    "model_card",
    "new_token",
    "other_data",
    "parse_step",
    "read_manifest",
    "resolve",
    "save_tensors",
    "stage",
    "staging_path",
    "step_name",
    "step_path",
    "verify",
]
