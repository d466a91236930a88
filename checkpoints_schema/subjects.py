"""Subjects are matched by id and voxel count: a head that does not fit is an error, never a silent skip."""

from collections.abc import Mapping

from fmri2img.checkpoints_schema.manifest import CheckpointManifest
from fmri2img.errors import InputError


def check_subjects(
    manifest: CheckpointManifest,
    wanted: Mapping[str, int],
    *,
    checkpoint: str = "the checkpoint",
    flag: str = "--subject",
) -> None:
    """Raise InputError unless the checkpoint has a head for every wanted subject, of its voxel count.

    `wanted` maps a subject's id to its number of voxels in the data at hand; `checkpoint` and `flag` name, in
    the message, what was read and how the user chooses subjects.
    """
    has = {subject: record.voxels for subject, record in manifest.subjects.items()}
    missing = [subject for subject in wanted if subject not in has]
    if missing:
        raise InputError(
            f"{checkpoint} has no head for {', '.join(missing)}: it has {_counts(has)}, asked for were "
            f"{_counts(wanted)}. Pass {flag} with one of {', '.join(sorted(has))}, "
            f"or finetune a head for {', '.join(missing)} first"
        )
    unequal = {subject: voxels for subject, voxels in wanted.items() if has[subject] != voxels}
    if unequal:
        raise InputError(
            f"{checkpoint} was trained on {_counts({subject: has[subject] for subject in unequal})}, "
            f"the data hold {_counts(unequal)}: a head fits one voxel count. Pass the data set it was "
            f"trained on ({', '.join(sorted({manifest.subjects[subject].dataset for subject in unequal}))}), "
            "or finetune on this one"
        )


def other_data(manifest: CheckpointManifest, fingerprints: Mapping[str, str]) -> list[str]:
    """The subjects whose data set fingerprint differs from the one their head was trained on, sorted.

    `fingerprints` maps a subject's id to the fingerprint at hand; subjects the checkpoint does not know are
    left to `check_subjects`.
    """
    return sorted(
        subject
        for subject, fingerprint in fingerprints.items()
        if subject in manifest.subjects and manifest.subjects[subject].fingerprint != fingerprint
    )


def check_data(
    manifest: CheckpointManifest,
    fingerprints: Mapping[str, str],
    *,
    checkpoint: str = "the checkpoint",
    data: str = "the data set",
) -> None:
    """Raise InputError unless the data at hand are those that the heads of these subjects were trained on.

    Equal voxel counts are not enough: a head reads the voxels of one build, in their order and units.
    """
    other = other_data(manifest, fingerprints)
    if other:
        was = sorted(
            {
                f"{manifest.subjects[name].dataset} ({manifest.subjects[name].fingerprint[:12]})"
                for name in other
            }
        )
        now = sorted({fingerprints[name][:12] for name in other})
        raise InputError(
            f"{checkpoint} was trained on {', '.join(other)} of {', '.join(was)}, {data} holds other data of that name "
            f"({', '.join(now)}): pass the data set it was trained on, or finetune {', '.join(other)} on this one"
        )


def _counts(voxels: Mapping[str, int]) -> str:
    return ", ".join(f"{subject} ({count} voxels)" for subject, count in sorted(voxels.items())) or "none"
