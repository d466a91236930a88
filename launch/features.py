"""The feature job: compute a recipe's spaces once and cache them as columns of the data set."""

import shutil
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from math import ceil, prod
from pathlib import Path
from typing import Any

from fmri2img.console import Tell, output, size_text, stage
from fmri2img.datasets import Dataset
from fmri2img.datasets.feature_columns import FeatureColumns, Space, plan
from fmri2img.datasets.features import DTYPES, add_columns
from fmri2img.datasets.remote import refuse_address
from fmri2img.errors import InputError
from fmri2img.features.extractors import Computing, Imported, made_by, made_with
from fmri2img.features.loading import ModelExtractor
from fmri2img.launch.cluster import Place, cluster
from fmri2img.launch.devices import choose_devices, only
from fmri2img.launch.doctor import preflight
from fmri2img.launch.feature_workers import DTYPES as PRECISIONS
from fmri2img.launch.feature_workers import FeatureTask, compute_here, compute_spread
from fmri2img.launch.slots import check_room
from fmri2img.trainer.config import Recipe

LARGE = 4096
"""Numbers a picture beyond which a model's features are stored in half precision unless asked otherwise."""


@dataclass(frozen=True)
class FeatureSettings:
    """How features are computed: where, and what decides bytes: `batch`, `precision` of the model, `dtype` stored."""

    place: Place | None = None
    devices: str = "auto"
    batch: int = 64
    precision: str = "float32"
    dtype: str | None = None
    spaces: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise InputError(f"--batch {self.batch}: a batch has at least 1 picture")
        if self.precision not in PRECISIONS:
            raise InputError(f"--precision {self.precision}: use {', '.join(PRECISIONS)}")
        if self.dtype is not None and self.dtype not in DTYPES:
            raise InputError(f"--dtype {self.dtype}: use {', '.join(DTYPES)}")


def check_imported(dataset: Dataset, name: str) -> None:
    """Raise InputError unless the data set has imported features of that name."""
    entry = dataset.feature_spaces.get(name)
    if entry is None or not made_by(Imported(), entry.extractor):
        raise InputError(
            f"{dataset.path} has no imported features {name}: bring them with "
            f"`fmri2img features import {dataset.path} --space {name} --from FILE:KEY`"
        )


def cache_features(recipe: Recipe, data: Path, settings: FeatureSettings | None = None) -> Dataset:
    """Add every space of the recipe that the data set does not have yet.

    Raises InputError when a space of that name was made otherwise, or when the pictures lack what an extractor needs.
    """
    settings = settings or FeatureSettings()
    refuse_address(data, "adding features")
    dataset = Dataset.open(data)
    unknown = sorted(set(settings.spaces) - set(recipe.spaces))
    if unknown:
        raise InputError(
            f"--space {' '.join(unknown)}: the recipe {recipe.name} has {', '.join(recipe.spaces)}, choose one of these"
        )
    missing: dict[str, Computing] = {}
    for name, space in recipe.spaces.items():
        if settings.spaces and name not in settings.spaces:
            continue
        if isinstance(space.extractor, Imported):
            check_imported(dataset, name)
        elif name in dataset.feature_spaces:
            _check_cached(dataset, name, space.extractor, settings.dtype)
        else:
            missing[name] = space.extractor
    if not missing:
        return dataset
    with ExitStack() as running:
        device = _start(settings, dataset.path, running)
        for name, extractor in missing.items():
            dataset = _add(dataset, name, extractor, settings, device)
    return dataset


def _check_cached(dataset: Dataset, name: str, extractor: Computing, dtype: str | None) -> None:
    """Raise InputError unless the column is what the extractor makes, with the weights that it would load now."""
    entry = dataset.feature_spaces[name]
    if dtype is not None and entry.dtype != dtype:
        raise InputError(
            f"{dataset.path} has features {name} as {entry.dtype}, and --dtype asks for {dtype}: leave it away, or "
            "give the space another name in the recipe"
        )
    if not made_by(extractor, entry.extractor):
        raise InputError(
            f"{dataset.path} has features {name} made by {dict(entry.extractor)}, the recipe wants "
            f"{extractor.model_dump(mode='json')}: choose another name for the space in the recipe"
        )
    try:
        same = made_with(extractor, entry.extractor)
    except InputError:
        return  # the weights are not here, and cached features do without
    if not same:
        assert isinstance(extractor, ModelExtractor)
        raise InputError(
            f"{dataset.path} has features {name} made with other weights than {extractor.home()} holds now (SHA-256 "
            f"{_digests(entry.extractor)}, here {_digests(extractor.record())}): bring those weights back, or give the "
            "space another name in the recipe"
        )


def _digests(recorded: Any) -> str:
    return " ".join(digest[:12] for digest in dict(recorded.get("weights", {})).values()) or "unknown"


def _start(settings: FeatureSettings, data: Path, running: ExitStack) -> str:
    """Connect to the cluster where there is to be one; the device to compute on."""
    place = settings.place
    if place is None:
        return choose_devices(settings.devices, None).first
    if place.address is not None:
        running.enter_context(cluster(place))
        devices = choose_devices(settings.devices, place)
    else:
        devices = choose_devices(settings.devices, place)
        running.enter_context(only(devices))
        running.enter_context(cluster(place))
    check_room(place, devices.kind)
    if place.preflight:
        preflight(address=place.address, data=data, out=data)
    return devices.kind


def _add(
    dataset: Dataset, name: str, extractor: Computing, settings: FeatureSettings, device: str
) -> Dataset:
    """Compute one space and add it."""
    model = isinstance(extractor, ModelExtractor)
    shape, identity = extractor.shape, extractor.record()
    if model and settings.precision != "float32":
        identity["precision"] = settings.precision
    dtype = settings.dtype or ("float16" if model and prod(shape) > LARGE else "float32")
    space = Space(name, shape, dtype, identity)
    plain = extractor.model_dump(mode="json")
    task = FeatureTask(str(dataset.path), space, plain, device, settings.precision, settings.batch)
    _check_room_on_disk(dataset, space, told=model)
    with stage(f"Features {name}", "pictures") as tell:

        def run(dataset: Dataset, space: Space, columns: FeatureColumns) -> None:
            timed = partial(_tell_time, tell, columns, settings)
            if settings.place is None:
                compute_here(task, columns, timed)
            else:
                compute_spread(task, columns, timed, settings.place.workers)

        return add_columns(dataset.path, space, run, lambda what, done, total: tell(done, total))


def _check_room_on_disk(dataset: Dataset, space: Space, *, told: bool) -> None:
    """Say what the job will write; raise InputError when the disk has no room for it."""
    rows = sum(shard.samples for shard in dataset.manifest.shards)
    distinct = sum(len(work.new) for work in plan(dataset))
    width = {"float32": 4}.get(space.dtype, 2)
    needed = rows * (prod(space.shape) * width + 1536)  # headers of tar and npy, and the filling of blocks
    there = sum(path.stat().st_size for path in dataset.path.glob(f"*/*.{space.name}.tar"))
    free = shutil.disk_usage(dataset.path).free
    if told or needed > 10**8:
        output().print(
            f"Features {space.name}: {distinct} pictures of {rows} samples, {_times(space.shape)} as {space.dtype}: "
            f"{size_text(needed)}, {size_text(free)} free"
        )
    if needed - there > free:
        smaller = ", or store half of it with --dtype float16" if width == 4 else ""
        raise InputError(
            f"the features {space.name} need {size_text(needed - there)} and {dataset.path} has {size_text(free)} "
            f"free: make room{smaller}"
        )


def _tell_time(tell: Tell, columns: FeatureColumns, settings: FeatureSettings, seconds: float) -> None:
    """Say how long the job will take, from the seconds of one batch."""
    if not seconds:
        return
    todo, workers = columns.todo, 1 if settings.place is None else settings.place.workers
    batches = sum(ceil(len(columns.works[number].new) / settings.batch) for number in todo)
    minutes = batches * seconds / min(workers, len(todo)) / 60
    note = f"about {minutes:.0f} min" if minutes >= 2 else f"about {minutes * 60:.0f} s"
    done = columns.pictures(range(len(columns.works))) - columns.pictures(todo)
    tell(done, columns.pictures(range(len(columns.works))), note)
    if not output().is_terminal:
        output().print(
            f"  a batch of {settings.batch} takes {seconds:.2g} s on {workers} worker{'s' * (workers > 1)}: {note}"
        )


def _times(shape: tuple[int, ...]) -> str:
    return " × ".join(str(n) for n in shape)
