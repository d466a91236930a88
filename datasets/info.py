"""What a data set holds, as plain data for `fmri2img data info`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fmri2img.datasets.dataset import Dataset


def info(path: str | Path) -> dict[str, Any]:
    """Subjects with voxels, sessions, ROIs and the counts of every split; feature spaces, shards and bytes.

    Reads the manifest and the indices alone.
    """
    dataset = Dataset.open(path)
    manifest = dataset.manifest
    subjects: dict[str, Any] = {}
    for subject in dataset.subjects:
        entry = manifest.subjects[subject]
        splits = {}
        for split in dataset.splits:
            samples = dataset.samples(subject, split)
            splits[split] = {"samples": len(samples), "trials": int(samples.repeats.sum())}
        subjects[subject] = {
            "voxels": entry.voxels,
            "sessions": entry.sessions,
            **({"window": entry.window} if entry.window else {}),
            **({"behaviour": list(entry.behaviour)} if entry.behaviour else {}),
            "rois": entry.rois,
            "splits": splits,
        }
    columns = [column for shard in manifest.shards for column in shard.columns.values()]
    small = [entry.table for entry in manifest.subjects.values()]
    small += [space.statistics for space in manifest.feature_spaces.values()]
    return {
        "path": str(dataset.path),
        "name": manifest.name,
        "terms": manifest.terms,
        "provenance": manifest.provenance,
        "schema_version": manifest.schema_version,
        "fingerprint": manifest.fingerprint,
        "normalisation": manifest.normalisation.model_dump(),
        "subjects": subjects,
        "feature_spaces": {
            name: {"shape": space.shape, "dtype": space.dtype, "extractor": space.extractor}
            for name, space in dataset.feature_spaces.items()
        },
        "shards": len(manifest.shards),
        "bytes": sum(column.bytes + column.index.bytes for column in columns)
        + sum(entry.bytes for entry in small),
    }
