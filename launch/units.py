"""The files of one unit of a reconstruction: written whole or not at all, and checked without making them again.

units/unit-00003/KEY.png ...             the pictures, or one WebDataset tar of them with a JSON file each
units/unit-00003/predictions.safetensors what the decoder predicted: features.SPACE, retrieval.SPACE, a row an item
units/unit-00003/unit.json               the job it belongs to, size and SHA-256 of each file, what it was made with
"""

import hashlib
import io
import json
import os
import shutil
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save

from fmri2img.datasets.png import encode_png
from fmri2img.errors import DamageError, StoppedError
from fmri2img.files import canonical_json, digest_json, sha256_file, staged_folder, write_json
from fmri2img.launch.items import Item, ReconstructionJob, Unit

SIDECAR = "unit.json"
PREDICTIONS = "predictions.safetensors"
TAR = "pictures.tar"


def unit_path(out: Path, unit: Unit) -> Path:
    """Where a unit is committed."""
    return out / "units" / unit.name


def write_unit(
    out: Path,
    job: ReconstructionJob,
    unit: Unit,
    pictures: np.ndarray,
    predictions: Mapping[str, torch.Tensor],
    made_with: Mapping[str, Any],
) -> None:
    """Commit a unit: pictures (n, H, W, 3) uint8 and predictions {name: (n, ...)}. A damaged one makes way last.

    Raises StoppedError when the disk does not take it; then nothing of it is left.
    """
    final = unit_path(out, unit)
    try:
        with staged_folder(final) as staging:
            encoded = {
                item.key: encode_png(picture) for item, picture in zip(unit.items, pictures, strict=True)
            }
            files = _picture_files(job, unit, encoded)
            files[PREDICTIONS] = save({name: value.contiguous() for name, value in predictions.items()})
            for name, data in files.items():
                (staging / name).write_bytes(data)
            told = {name: {"bytes": len(data), "sha256": _sha256(data)} for name, data in files.items()}
            digests = {key: _sha256(data) for key, data in encoded.items()}
            sidecar = _identity(job, unit) | {"files": told, "pictures": digests, "made_with": made_with}
            write_json(staging / SIDECAR, sidecar | {"seal": digest_json(sidecar)})
            if final.exists():
                shutil.rmtree(final)
    except OSError as error:
        if final.exists() and unit_problem(out, job, unit, deep=True) is None:
            return  # another worker, thought dead, was quicker: its bytes are the same
        raise StoppedError(
            f"{final} cannot be written: {error.strerror or error}. Mend that and run the same command: it goes on "
            "from the units that are done"
        ) from error


def picture_place(job: ReconstructionJob, item: Item) -> tuple[str, str]:
    """The file of a unit that holds an item's picture, and what it is called."""
    name = f"{item.key}.png"
    return (TAR if job.output == "tar" else name), name


def _picture_files(job: ReconstructionJob, unit: Unit, encoded: Mapping[str, bytes]) -> dict[str, bytes]:
    if job.output == "folder":
        return {f"{key}.png": data for key, data in encoded.items()}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for item in unit.items:
            told = {
                "subject": item.subject,
                "nsd_id": item.nsd_id,
                "repeats": item.repeats,
                "sample": item.sample,
            }
            for ending, data in (("json", canonical_json(told)), ("png", encoded[item.key])):
                member = tarfile.TarInfo(
                    f"{item.key}.{ending}"
                )  # no time and no owner: bytes are the items' alone
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return {TAR: buffer.getvalue()}


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _identity(job: ReconstructionJob, unit: Unit) -> dict[str, Any]:
    return {"job": digest_json(job.model_dump(mode="json")), "keys": [item.key for item in unit.items]}


def read_sidecar(out: Path, unit: Unit) -> dict[str, Any]:
    """What `unit.json` says; DamageError when it is missing or not as it was written."""
    path = unit_path(out, unit) / SIDECAR
    if not path.is_file():
        raise DamageError(f"{path} is not there")
    try:
        told: dict[str, Any] = json.loads(path.read_bytes())
        seal = told.pop("seal")
    except (ValueError, KeyError, AttributeError) as error:
        raise DamageError(f"{path} is damaged") from error
    if seal != digest_json(told):
        raise DamageError(f"{path} is damaged")
    return told


def unit_problem(out: Path, job: ReconstructionJob, unit: Unit, *, deep: bool = False) -> str | None:
    """Why a unit is not done, or None.

    A unit is renamed into place after its files are on the disk, so its sealed sidecar and the sizes of its files say
    that it was finished. `deep` reads every byte again and also finds what changed since then.
    """
    folder = unit_path(out, unit)
    if not folder.is_dir():
        return "it is not there"
    try:
        told = read_sidecar(out, unit)
    except DamageError as error:
        return f"{SIDECAR} {str(error).split(SIDECAR)[-1].strip()}"
    if {key: told.get(key) for key in ("job", "keys")} != _identity(job, unit):
        return "it belongs to another job"
    for name, file in told["files"].items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != file["bytes"]:
            return f"{name} is missing or changed"
        if deep and sha256_file(path) != file["sha256"]:
            return f"{name} is missing or changed"
    stray = sorted(set(os.listdir(folder)) - {*told["files"], SIDECAR})
    return f"it holds {', '.join(stray)}, which it does not make" if stray else None


def clear_stale(out: Path) -> None:
    """Remove what a job that was killed had begun to write."""
    for path in (out / "units").glob(".unit-*.tmp-*"):
        shutil.rmtree(path, ignore_errors=True)
