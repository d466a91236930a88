"""From finished units to a reconstruction: the manifest that names every item once, and how to read what it names."""

import io
import json
import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors.torch import load_file

from fmri2img.datasets import Dataset
from fmri2img.errors import DamageError, InputError
from fmri2img.files import digest_json, sha256_file, write_json
from fmri2img.launch.items import ReconstructionJob, units_of
from fmri2img.launch.units import PREDICTIONS, picture_place, read_sidecar, unit_path, unit_problem

MANIFEST = "manifest.json"


def merge(out: Path, job: ReconstructionJob, dataset: Dataset) -> Path:
    """Check that every item is there exactly once and write `manifest.json`.

    Raises DamageError that names the first unit that is missing or damaged, or a folder that is no unit of the job's,
    and InputError when units were made with different weights of the generator.
    """
    units = units_of(job, dataset)
    listed: list[dict[str, Any]] = []
    predictions: dict[str, str] = {}
    files: dict[str, str] = {}
    made_with: dict[str, dict[str, Any]] = {}
    for unit in units:
        if problem := unit_problem(out, job, unit):
            raise DamageError(
                f"{unit_path(out, unit)}: {problem}; run the same command again to make it again"
            )
        told, place = read_sidecar(out, unit), f"units/{unit.name}"
        predictions[f"{place}/{PREDICTIONS}"] = told["files"][PREDICTIONS]["sha256"]
        files |= {
            f"{place}/{name}": f["sha256"] for name, f in told["files"].items() if name.endswith(".tar")
        }
        same = made_with.setdefault(digest_json(told["made_with"]), told["made_with"] | {"units": 0})
        same["units"] += 1
        for item in unit.items:
            file, member = picture_place(job, item)
            listed.append(
                {
                    "key": item.key,
                    "subject": item.subject,
                    "nsd_id": item.nsd_id,
                    "repeats": list(item.repeats),
                    "sample": item.sample,
                    "seed": item.seed(job, "picture"),
                    "file": f"{place}/{file}",
                    "sha256": told["pictures"][item.key],
                }
                | ({"member": member} if file != member else {})
            )
    wanted = {unit.name for unit in units}
    stray = sorted(
        p.name for p in (out / "units").iterdir() if p.name not in wanted and not p.name.startswith(".")
    )
    if stray:
        raise DamageError(f"{out / 'units'} holds {', '.join(stray)}, which the job does not make: remove it")
    one_generator(out, (found["weights"] for found in made_with.values()))
    told = {
        "schema_version": 1,
        "job": job.model_dump(mode="json"),
        "made_with": [made_with[key] for key in sorted(made_with)],
        "items": listed,
        "predictions": predictions,
        "tars": files,
    }
    write_json(out / MANIFEST, told)
    return out / MANIFEST


def one_generator(out: Path, weights: Iterable[Mapping[str, Any]]) -> None:
    """Raise InputError when units were made with different weights of the generator: they are no one reconstruction."""
    if len({digest_json(dict(one)) for one in weights}) > 1:
        raise InputError(
            f"{out} holds units made with other weights of the generator than there are now: give another --out, or "
            "put those weights back"
        )


@dataclass(frozen=True)
class Made:
    """A merged reconstruction: n items, aligned."""

    job: ReconstructionJob
    items: list[dict[str, Any]]
    pictures: np.ndarray  # (n, H, W, 3) uint8
    features: dict[str, np.ndarray]
    retrieval: dict[str, np.ndarray]


def read_made(out: Path) -> Made:
    """Read a merged reconstruction; InputError when there is none, DamageError when a picture changed."""
    path = out / MANIFEST
    if not path.is_file():
        raise InputError(f"{out} holds no finished reconstruction: run `fmri2img reconstruct` first")
    try:
        told = json.loads(path.read_bytes())
        job = ReconstructionJob.model_validate(told["job"])
        pictures = {item["file"]: item["sha256"] for item in told["items"] if "member" not in item}
        digests = pictures | told["predictions"] | told.get("tars", {})
        missing = {item["file"] for item in told["items"]} - set(digests)
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(path) from error
    if missing:
        raise _damaged(path)
    for name, digest in digests.items():
        if not (out / name).is_file() or sha256_file(out / name) != digest:
            raise DamageError(
                f"{out / name} is missing or changed: run the same command with --verify to make it again"
            )
    parts = [load_file(out / name) for name in sorted(told["predictions"])]
    joined = {name: np.concatenate([part[name].numpy() for part in parts]) for name in parts[0]}
    features = {n.removeprefix("features."): v for n, v in joined.items() if n.startswith("features.")}
    retrieval = {n.removeprefix("retrieval."): v for n, v in joined.items() if n.startswith("retrieval.")}
    return Made(job, told["items"], _pictures(out, told["items"]), features, retrieval)


def _damaged(path: Path) -> DamageError:
    return DamageError(f"{path} is damaged: run `fmri2img reconstruct` again to remake it")


def _pictures(out: Path, items: list[dict[str, Any]]) -> np.ndarray:
    """(n, H, W, 3) uint8; every tar is opened once."""
    tars: dict[str, dict[str, bytes]] = {}
    found = []
    for item in items:
        if "member" not in item:
            found.append(np.asarray(Image.open(out / item["file"]).convert("RGB")))
            continue
        if item["file"] not in tars:
            tars = {item["file"]: _members(out / item["file"])}
        found.append(np.asarray(Image.open(io.BytesIO(tars[item["file"]][item["member"]])).convert("RGB")))
    return np.stack(found)


def _members(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as tar:
        return {m.name: file.read() for m in tar if (file := tar.extractfile(m)) is not None}
