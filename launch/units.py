"""Reconstruction cut into fixed units, each made whole or not at all. No cluster here: a unit is a function call.

job.json                     what is reconstructed from what: the identity of the folder
units/unit-00003/            one unit: pictures, predictions.safetensors, unit.json with the SHA-256 of each file
manifest.json                written last: every item with its file, once
"""

import io
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors.torch import load_file, save_file

from fmri2img import checkpoints_schema as schema
from fmri2img.console import output
from fmri2img.datasets import Dataset
from fmri2img.errors import DamageError, InputError
from fmri2img.files import digest_json, sha256_file, staged_folder, write_json
from fmri2img.models.loading import load_decoder
from fmri2img.trainer.config import Recipe
from fmri2img.trainer.seeds import derive_seed


class ReconstructionJob(BaseModel):
    """What decides every byte of a reconstruction. Paths and the number of workers are not among it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    checkpoint: str = Field(description="SHA-256 of the checkpoint's manifest")
    fingerprint: str
    subjects: list[str]
    split: str
    repeats: Literal["average", "single"] = "average"
    samples: int = Field(default=1, ge=1, description="pictures made of each item, from different seeds")
    batch: int = Field(default=16, ge=1, description="items of a unit; the tail is padded")
    seed: int = 0
    generator: dict[str, Any]
    spaces: list[str]


@dataclass(frozen=True)
class Item:
    """One picture to make: a sample of the data set, the repeats to read, and the number of the generated sample."""

    key: str
    subject: str
    row: int
    nsd_id: int
    repeats: tuple[int, ...]
    sample: int


def plan_job(checkpoint: Path, data: Path, *, subjects: Sequence[str], **settings: Any) -> ReconstructionJob:
    """Check that checkpoint and data fit and describe the job.

    Raises InputError for subjects that the checkpoint has no head for, other voxel counts, or other data.
    """
    found = schema.resolve(checkpoint)
    for line in found.warnings:
        output().print(line, markup=False)
    dataset = Dataset.open(data)
    subjects = list(subjects) or [name for name in found.manifest.subjects if name in dataset.subjects]
    twice = sorted({name for name in subjects if subjects.count(name) > 1})
    if twice:
        raise InputError(f"--subjects names {', '.join(twice)} more than once: name every subject once")
    absent = [name for name in subjects if name not in dataset.subjects]
    if absent or not subjects:
        raise InputError(
            f"{data} has {', '.join(dataset.subjects)}, not {', '.join(absent) or ', '.join(found.manifest.subjects)}: "
            "pass --subjects with one that both the data and the checkpoint have"
        )
    schema.check_subjects(
        found.manifest,
        {s: dataset.inputs(s) for s in subjects},
        checkpoint=str(checkpoint),
        flag="--subjects",
    )
    schema.check_data(
        found.manifest,
        dict.fromkeys(subjects, dataset.fingerprint),
        checkpoint=str(checkpoint),
        data=str(data),
    )
    recipe = recipe_of(found.path)
    try:
        job = ReconstructionJob(
            checkpoint=sha256_file(found.path / schema.MANIFEST_NAME),
            fingerprint=dataset.fingerprint,
            subjects=list(subjects),
            generator=recipe.generator.model_dump(mode="json"),
            spaces=sorted(recipe.spaces),
            **settings,
        )
    except ValidationError as error:
        raise flag_error(error) from error
    items_of(job, dataset)
    return job


def flag_error(error: ValidationError) -> InputError:
    """One sentence about the first flag whose value a settings class refuses."""
    first = error.errors(include_url=False)[0]
    rule = first["msg"].replace("Input should be", "must be", 1)
    return InputError(f"--{'-'.join(map(str, first['loc']))} {first['input']}: it {rule}")


def recipe_of(folder: Path) -> Recipe:
    """The recipe that a step folder was trained with."""
    return Recipe.model_validate(json.loads((folder / schema.CONFIG_NAME).read_text())["recipe"])


def items_of(job: ReconstructionJob, dataset: Dataset) -> list[Item]:
    """Every item of the job in manifest order."""
    items = []
    for subject in job.subjects:
        table = dataset.samples(subject, job.split)
        for row in range(len(table)):
            count = int(table.repeats[row])
            groups = [tuple(range(count))] if job.repeats == "average" else [(r,) for r in range(count)]
            for repeats in groups:
                name = str(table.keys[row]) + ("" if job.repeats == "average" else f"_r{repeats[0]}")
                for sample in range(job.samples):
                    items.append(
                        Item(f"{name}_s{sample}", subject, row, int(table.nsd_id[row]), repeats, sample)
                    )
    if not items:
        raise InputError(
            f"split {job.split} of {', '.join(job.subjects)} holds no sample: choose another --split"
        )
    return items


def unit_path(out: Path, number: int) -> Path:
    """Where a unit is committed."""
    return out / "units" / f"unit-{number:05d}"


class Reconstructor:
    """Decoder, generator and data of a job, loaded once in a worker."""

    def __init__(self, job: ReconstructionJob, checkpoint: Path, data: Path, out: Path) -> None:
        found = schema.resolve(checkpoint)
        if sha256_file(found.path / schema.MANIFEST_NAME) != job.checkpoint:
            raise InputError(f"{checkpoint} changed since the job was planned: give another --out")
        self.job, self.out, self.dataset = job, out, Dataset.open(data)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.decoder = load_decoder(found.path).to(self.device)
        self.generator = recipe_of(found.path).generator.load(self.device)
        self.items = items_of(job, self.dataset)
        self.tables = {name: self.dataset.samples(name, job.split) for name in job.subjects}

    def make(self, number: int) -> int:
        """Make and commit one unit; returns the number of its items. A unit that is there and whole stays."""
        items = self.items[number * self.job.batch : (number + 1) * self.job.batch]
        final = unit_path(self.out, number)
        if final.exists():
            if not unit_problem(self.out, self.job, number, items):
                return len(items)
            shutil.rmtree(final)
        with _one_thread():
            features, retrieval = self._predict(items)
            pictures = self._generate(items, features)
        with staged_folder(final) as staging:
            names = []
            for item, picture in zip(items, pictures, strict=True):
                names.append(f"{item.key}.png")
                (staging / names[-1]).write_bytes(_png(picture))
            tensors = {f"features.{n}": v.contiguous() for n, v in features.items()}
            tensors |= {f"retrieval.{n}": v.contiguous() for n, v in retrieval.items()}
            save_file(tensors, staging / "predictions.safetensors")
            files = {name: sha256_file(staging / name) for name in [*names, "predictions.safetensors"]}
            write_json(staging / "unit.json", _sidecar(self.job, items, files))
        return len(items)

    def _predict(self, items: Sequence[Item]) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """Features and retrieval directions of each item, averaged over its repeats (as Scotti et al. 2024, section 3).

        One forward a subject and repeat number, always of `batch` rows, so that no item's numbers depend on the others.
        """
        sums: dict[str, dict[str, torch.Tensor]] = {"features": {}, "retrieval": {}}
        most = max(len(item.repeats) for item in items)
        for subject in sorted({item.subject for item in items}):
            for turn in range(most):
                chosen = [
                    i for i, item in enumerate(items) if item.subject == subject and turn < len(item.repeats)
                ]
                if not chosen:
                    continue
                rows = np.array([items[i].row for i in chosen])
                repeats = np.array([items[i].repeats[turn] for i in chosen])
                values = self.dataset.read_trials(self.tables[subject], rows, repeats).reshape(len(rows), -1)
                padded = np.zeros((self.job.batch, values.shape[1]), np.float32)
                padded[: len(values)] = values
                predicted = self.decoder.predict({subject: torch.from_numpy(padded).to(self.device)})
                for kind, spaces in (("features", predicted.features), ("retrieval", predicted.retrieval)):
                    for name, value in spaces.items():
                        into = sums[kind].setdefault(name, torch.zeros(len(items), *value.shape[1:]))
                        for position, i in enumerate(chosen):
                            into[i] += value[position].cpu() / len(items[i].repeats)
        return sums["features"], sums["retrieval"]

    def _generate(self, items: Sequence[Item], features: dict[str, torch.Tensor]) -> np.ndarray:
        """(n, H, W, 3) uint8. One CPU generator an item, seeded by its name; always `batch` rows."""
        pad = self.job.batch - len(items)
        full = {n: torch.cat([v, v[:1].expand(pad, *v.shape[1:])]) if pad else v for n, v in features.items()}
        keys = [item.key for item in items] + ["padding"] * pad
        seeds = [torch.Generator().manual_seed(derive_seed(self.job.seed, "picture", key)) for key in keys]
        pictures = self.generator.generate(full, seeds)[: len(items)]
        return (pictures * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


@contextmanager
def _one_thread() -> Iterator[None]:
    """Sums of several threads differ in their last bits from those of one, and workers have other numbers of them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def unit_problem(out: Path, job: ReconstructionJob, number: int, items: Sequence[Item]) -> str | None:
    """Why a unit is not done, or None when every byte of it is as it was written."""
    folder = unit_path(out, number)
    sidecar = folder / "unit.json"
    if not sidecar.is_file():
        return "it is not there"
    try:
        told = json.loads(sidecar.read_text())
    except ValueError:
        return "unit.json is not valid JSON"
    if told != _sidecar(job, items, told.get("files", {})):
        return "it belongs to another job"
    for name, digest in told["files"].items():
        if not (folder / name).is_file() or sha256_file(folder / name) != digest:
            return f"{name} is missing or changed"
    wanted = {f"{item.key}.png" for item in items} | {"predictions.safetensors"}
    return None if set(told["files"]) == wanted else "it holds other files than its items need"


def merge(out: Path, job: ReconstructionJob, dataset: Dataset) -> Path:
    """Check that every item is there exactly once and write `manifest.json`.

    Raises DamageError that names the first unit that is missing or damaged.
    """
    items = items_of(job, dataset)
    listed, predictions = [], {}
    for number in range(units_of(job, items)):
        part = items[number * job.batch : (number + 1) * job.batch]
        problem = unit_problem(out, job, number, part)
        if problem:
            raise DamageError(f"{unit_path(out, number)}: {problem}; run the same command again to remake it")
        files = json.loads((unit_path(out, number) / "unit.json").read_text())["files"]
        predictions[f"units/unit-{number:05d}/predictions.safetensors"] = files["predictions.safetensors"]
        for item in part:
            file = f"{item.key}.png"
            listed.append(
                {
                    "key": item.key,
                    "subject": item.subject,
                    "nsd_id": item.nsd_id,
                    "repeats": list(item.repeats),
                    "sample": item.sample,
                    "file": f"units/unit-{number:05d}/{file}",
                    "sha256": files[file],
                }
            )
    stray = sorted(
        {p.name for p in (out / "units").iterdir()} - {f"unit-{n:05d}" for n in range(units_of(job, items))}
    )
    stray = [name for name in stray if not name.startswith(".")]
    if stray:
        raise DamageError(f"{out / 'units'} holds {', '.join(stray)}, which the job does not make: remove it")
    told = {
        "schema_version": 1,
        "job": job.model_dump(mode="json"),
        "items": listed,
        "predictions": predictions,
    }
    write_json(out / "manifest.json", told)
    return out / "manifest.json"


def units_of(job: ReconstructionJob, items: Sequence[Item]) -> int:
    """The number of units."""
    return -(-len(items) // job.batch)


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
    path = out / "manifest.json"
    if not path.is_file():
        raise InputError(f"{out} holds no finished reconstruction: run `fmri2img reconstruct` first")
    try:
        told = json.loads(path.read_bytes())
        job = ReconstructionJob.model_validate(told["job"])
        files = {item["file"]: item["sha256"] for item in told["items"]} | told["predictions"]
    except (ValueError, KeyError, TypeError) as error:
        raise DamageError(f"{path} is damaged: run `fmri2img reconstruct` again to remake it") from error
    for name, digest in files.items():
        if not (out / name).is_file() or sha256_file(out / name) != digest:
            raise DamageError(
                f"{out / name} is missing or changed: run `fmri2img reconstruct` again to remake it"
            )
    pictures = [np.asarray(Image.open(out / item["file"]).convert("RGB")) for item in told["items"]]
    parts = [load_file(out / name) for name in sorted(told["predictions"])]
    joined = {name: np.concatenate([part[name].numpy() for part in parts]) for name in parts[0]}
    features = {n.removeprefix("features."): v for n, v in joined.items() if n.startswith("features.")}
    retrieval = {n.removeprefix("retrieval."): v for n, v in joined.items() if n.startswith("retrieval.")}
    return Made(job, told["items"], np.stack(pictures), features, retrieval)


def _sidecar(job: ReconstructionJob, items: Sequence[Item], files: dict[str, str]) -> dict[str, Any]:
    return {
        "job": digest_json(job.model_dump(mode="json")),
        "keys": [item.key for item in items],
        "files": files,
    }


def _png(picture: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG")
    return buffer.getvalue()
