"""The model card of a checkpoint: `README.md` with the front matter that the Hugging Face hub reads."""

import math

import yaml

from fmri2img.checkpoints_schema.manifest import MODEL_NAME, CheckpointManifest

_KINDS = {
    "decoder": "A decoder: one head per subject, a shared backbone, one branch per feature space.",
    "ridge": "A linear decoder: ridge regression from voxels to each feature space, fitted per subject.",
}


def model_card(manifest: CheckpointManifest, *, license: str = "other") -> str:
    """The card's text. It states what the manifest holds and nothing else.

    `license` is the licence of the weights, an identifier of the hub. Weights inherit the terms of the data
    they were trained on, so the default names none.
    """
    front: dict[str, object] = {"library_name": "fmri2img", "license": license}
    if license == "other":
        front["license_name"] = "terms-of-the-training-data"
    front["tags"] = ["fmri", "brain-decoding", "image-reconstruction", manifest.kind]
    if manifest.metrics:
        front["metrics"] = sorted(manifest.metrics)
    subjects = [
        f"| {name} | {record.voxels} | {record.dataset} | `{record.fingerprint[:12]}` |"
        for name, record in sorted(manifest.subjects.items())
    ]
    spaces = [
        f"| {name} | {' x '.join(map(str, record.shape)) or 'scalar'} | {math.prod(record.shape)} |"
        for name, record in sorted(manifest.feature_spaces.items())
    ]
    lines = [
        "---",
        yaml.safe_dump(front, sort_keys=False, allow_unicode=True).rstrip(),
        "---",
        "",
        f"# {manifest.recipe}, step {manifest.step}",
        "",
        f"{_KINDS[manifest.kind]} It predicts features of the picture a person saw from their fMRI.",
        f"The weights are in `{MODEL_NAME}`; `manifest.json` says what every file is.",
        "",
        *("| subject | voxels | data set | fingerprint |", "|---|---|---|---|", *subjects, ""),
        *("| feature space | shape | values |", "|---|---|---|", *spaces, ""),
    ]
    if manifest.metrics:
        rows = [f"| {name} | {value:.6g} |" for name, value in sorted(manifest.metrics.items())]
        lines += ["| metric | value |", "|---|---|", *rows, ""]
    if manifest.parent is not None:
        lines += [f"Trained from `{manifest.parent.path}`, step {manifest.parent.step}.", ""]
    made = ", ".join(f"{name} {version}" for name, version in sorted(manifest.created_with.items()))
    lines += [f"Made {manifest.created_at} with {made}." if made else f"Made {manifest.created_at}.", ""]
    return "\n".join(lines)
