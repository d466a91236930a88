"""What a reconstruction makes: its settings, which decide every byte, and its items in their one order."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fmri2img import checkpoints_schema as schema
from fmri2img.config import with_generator
from fmri2img.console import output
from fmri2img.datasets import Dataset
from fmri2img.errors import InputError
from fmri2img.files import sha256_file
from fmri2img.trainer.config import Recipe
from fmri2img.trainer.seeds import derive_seed


class ReconstructionJob(BaseModel):
    """What decides every byte of a reconstruction. Paths, workers and threads are not among it."""

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
    device: Literal["cpu", "cuda"] = "cpu"
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        default="float32", description="what the generator computes in; the decoder computes in float32"
    )
    output: Literal["folder", "tar"] = Field(
        default="folder", description="pictures as PNG files, or as one WebDataset tar a unit"
    )


@dataclass(frozen=True)
class Item:
    """One picture to make: a sample of the data set, the repeats to read, and the number of the generated sample."""

    key: str
    subject: str
    row: int
    nsd_id: int
    repeats: tuple[int, ...]
    sample: int

    def seed(self, job: ReconstructionJob, purpose: str) -> int:
        """The seed of this item's noise: a function of (run seed, subject, nsd_id, sample[, repeat]) and nothing else.

        It is not made of `key`, which names the partition too where a picture stands in both.
        """
        repeat = self.repeats if job.repeats == "single" else ()
        return derive_seed(job.seed, purpose, self.subject, self.nsd_id, self.sample, *repeat)


@dataclass(frozen=True)
class Unit:
    """Items that are made together, whole or not at all."""

    number: int
    items: tuple[Item, ...]

    @property
    def name(self) -> str:
        """The name of its folder."""
        return f"unit-{self.number:05d}"


def plan_job(
    checkpoint: Path,
    data: Path,
    *,
    subjects: Sequence[str],
    generator: Path | None = None,
    changes: Sequence[str] = (),
    **settings: Any,
) -> ReconstructionJob:
    """Check that checkpoint and data fit and describe the job.

    The generator is the recipe's, or that of the YAML file `generator`, with `changes` such as "guidance=3".
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
    inputs = {s: dataset.inputs(s) for s in subjects}
    schema.check_subjects(found.manifest, inputs, checkpoint=str(checkpoint), flag="--subjects")
    prints = dict.fromkeys(subjects, dataset.fingerprint)
    schema.check_data(found.manifest, prints, checkpoint=str(checkpoint), data=str(data))
    recipe = recipe_of(found.path)
    if generator is not None or changes:
        recipe = with_generator(recipe, generator, changes)
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


def units_of(job: ReconstructionJob, dataset: Dataset) -> list[Unit]:
    """The items cut into units of `batch`, the last one shorter."""
    items = items_of(job, dataset)
    starts = range(0, len(items), job.batch)
    return [Unit(n, tuple(items[at : at + job.batch])) for n, at in enumerate(starts)]
