"""Describes a data set folder in Croissant 1.1, so that tools which know that format can find and read it.

`croissant.json` is made from the manifest alone and written beside it: every tar of every shard with its
sha256, the files within the tars as file sets, and record sets of samples, responses, pictures, captions and
features by partition. It is no part of the data set: our readers never look at it.

Croissant: Akhtar et al. 2024, "Croissant: A Metadata Format for ML-Ready Datasets"; version 1.1 of its format.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fmri2img.datasets.manifest import BETAS, PARTITIONS, DatasetManifest, FileEntry, ShardEntry
from fmri2img.files import write_json

CROISSANT = "croissant.json"
CONFORMS_TO = "http://mlcommons.org/croissant/1.1"
TAR, NUMPY, JSON = "application/x-tar", "application/octet-stream", "application/json"
FROM_NAME = {
    "key": (r"([^.]+)\..*", "sc:Text", "key of the sample, unique over the data set"),
    "subject": (r"([^_.]+)_.*", "sc:Text", "subject id"),
    "nsd_id": (r"[^_.]+_nsd0*([0-9]+).*", "sc:Integer", "id of the picture"),
}
"""Fields that the name of a file in a tar tells: regular expression, type and meaning."""


def write_croissant(root: Path, manifest: DatasetManifest) -> None:
    """Write `croissant.json` of the data set folder `root` as its manifest now is, in one piece."""
    write_json(root / CROISSANT, croissant(manifest))


def croissant(manifest: DatasetManifest) -> dict[str, Any]:
    """The JSON-LD of a data set: the same for the same manifest."""
    spaces = ", ".join(manifest.feature_spaces) or "none"
    words = (
        f"fMRI responses of {len(manifest.subjects)} subjects to pictures, with the pictures and their captions. "
        f"A sample is one picture seen by one subject, with every repeat of it. Feature spaces: {spaces}. "
        + " ".join(f"{name}: {value}." for name, value in sorted(manifest.provenance.items()))
    )
    described: dict[str, Any] = {
        "@context": _context(),
        "@type": "sc:Dataset",
        "conformsTo": CONFORMS_TO,
        "name": manifest.name,
        "description": words,
        "license": manifest.terms,
        "identifier": manifest.fingerprint,
        "distribution": [*_tars(manifest), *_tables(manifest), *_file_sets(manifest)],
        "recordSet": list(_record_sets(manifest)),
    }
    addresses = [value for value in manifest.provenance.values() if value.startswith(("http://", "https://"))]
    return described | ({"url": addresses[0]} if addresses else {})


def _context() -> dict[str, Any]:
    """The terms of Croissant 1.1 that a reader of JSON-LD needs."""
    own = (
        "arrayShape citeAs column containedIn equivalentProperty extract field fileObject fileProperty fileSet "
        "format includes isArray isLiveDataset jsonPath key md5 parentField path recordSet references regex "
        "repeated replace samplingRate separator source subField transform"
    )
    context: dict[str, Any] = {name: f"cr:{name}" for name in own.split()}
    return context | {
        "@language": "en",
        "@vocab": "https://schema.org/",
        "conformsTo": "dct:conformsTo",
        "cr": "http://mlcommons.org/croissant/",
        "data": {"@id": "cr:data", "@type": "@json"},
        "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
        "dct": "http://purl.org/dc/terms/",
        "description": {"@container": "@language"},
        "examples": {"@id": "cr:examples", "@type": "@json"},
        "name": {"@container": "@language"},
        "rai": "http://mlcommons.org/croissant/RAI/",
        "sc": "https://schema.org/",
    }


def _file(entry: FileEntry, encoding: str, words: str) -> dict[str, Any]:
    return {
        "@type": "cr:FileObject",
        "@id": entry.file,
        "name": entry.file,
        "description": words,
        "contentUrl": entry.file,
        "contentSize": f"{entry.bytes} B",
        "encodingFormat": encoding,
        "sha256": entry.sha256,
    }


def _tars(manifest: DatasetManifest) -> Iterator[dict[str, Any]]:
    for shard in manifest.shards:
        for column in sorted(shard.columns):
            words = f"{column} of {shard.samples} {shard.partition} samples of {shard.subject}"
            yield _file(shard.columns[column], TAR, words)


def _tables(manifest: DatasetManifest) -> Iterator[dict[str, Any]]:
    for subject, entry in manifest.subjects.items():
        yield _file(
            entry.table, NUMPY, f"arrays with an entry for each of {entry.voxels} voxels of {subject}"
        )
    for name, space in manifest.feature_spaces.items():
        yield _file(space.statistics, NUMPY, f"mean and standard deviation of {name} over training pictures")


def _members(manifest: DatasetManifest) -> Iterator[tuple[str, str, list[str], list[str], str]]:
    """Name, column, globs, encodings and words of the files of a kind, such as pictures, in the tars."""
    shape = (
        "(repeats, time, voxels)"
        if any(s.window for s in manifest.subjects.values())
        else "(repeats, voxels)"
    )
    yield (
        "samples",
        "responses",
        ["*.json"],
        [JSON],
        "JSON: nsd_id, and session, trial and behaviour of each repeat",
    )
    yield "responses", "responses", [f"*.{BETAS}"], [NUMPY], f"the bytes of a .npy file, float16 {shape}"
    yield "pictures", "stimuli", ["*.png", "*.jpg"], ["image/png", "image/jpeg"], "the picture seen"
    yield "captions", "stimuli", ["*.json"], [JSON], "JSON: nsd_id and captions of the picture"
    for name, space in manifest.feature_spaces.items():
        words = f"the bytes of a .npy file, {space.dtype} {tuple(space.shape)}"
        yield f"features-{name}", name, ["*.npy"], [NUMPY], words


def _file_sets(manifest: DatasetManifest) -> Iterator[dict[str, Any]]:
    for partition, shards in _partitions(manifest):
        for name, column, globs, encodings, _ in _members(manifest):
            yield {
                "@type": "cr:FileSet",
                "@id": f"{partition}-{name}-files",
                "name": f"{partition}-{name}-files",
                "containedIn": [{"@id": shard.columns[column].file} for shard in shards],
                "encodingFormat": encodings,
                "includes": globs,
            }


def _record_sets(manifest: DatasetManifest) -> Iterator[dict[str, Any]]:
    for partition, _ in _partitions(manifest):
        for name, _, _, encodings, words in _members(manifest):
            record_set = f"{partition}-{name}"
            kind = "sc:ImageObject" if "image/png" in encodings else "sc:Text"
            fields = [_field(record_set, "content", kind, {"extract": {"fileProperty": "content"}}, words)]
            for field, (regex, type_, meaning) in FROM_NAME.items():
                source = {"extract": {"fileProperty": "filename"}, "transform": {"regex": regex}}
                fields.append(_field(record_set, field, type_, source, meaning))
            yield {
                "@type": "cr:RecordSet",
                "@id": record_set,
                "name": record_set,
                "description": f"{name} of the partition {partition}, one record for each sample",
                "key": {"@id": f"{record_set}/key"},
                "field": fields,
            }


def _partitions(manifest: DatasetManifest) -> Iterator[tuple[str, list[ShardEntry]]]:
    """The partitions that have shards."""
    for partition in PARTITIONS:
        shards = [shard for shard in manifest.shards if shard.partition == partition]
        if shards:
            yield partition, shards


def _field(record_set: str, name: str, kind: str, source: dict[str, Any], words: str) -> dict[str, Any]:
    return {
        "@type": "cr:Field",
        "@id": f"{record_set}/{name}",
        "name": f"{record_set}/{name}",
        "description": words,
        "dataType": kind,
        "source": {"fileSet": {"@id": f"{record_set}-files"}} | source,
    }
