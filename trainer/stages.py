"""The two stages: pretraining on many subjects in many processes, finetuning one subject on one device."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from fmri2img import checkpoints_schema as schema
from fmri2img.console import output
from fmri2img.datasets import Dataset, Samples
from fmri2img.datasets.plan import SamplingPlan, hold_out
from fmri2img.errors import InputError
from fmri2img.features.extractors import made_by
from fmri2img.models.closed_form import PictureRows, fit_alignment, fit_head, start_as_ridge
from fmri2img.models.config import DecoderConfig
from fmri2img.models.decoder import MultiSubjectDecoder
from fmri2img.models.linear import RidgeDecoder
from fmri2img.models.loading import load_decoder
from fmri2img.models.prior import FREE
from fmri2img.models.spaces import TargetSpace, is_directed, prior_of, target_space
from fmri2img.trainer.batches import BatchLoader, picture_rows, with_sessions
from fmri2img.trainer.collectives import broadcast_object, fail_together, rank, world_size
from fmri2img.trainer.config import Recipe, TrainingConfig
from fmri2img.trainer.engines import AccelerateEngine, DeepSpeedEngine, Engine
from fmri2img.trainer.engines.interface import COUNT
from fmri2img.trainer.loop import Job, check_layout, train
from fmri2img.trainer.pairing import Trials, paired_targets, read_trials, trial_latents
from fmri2img.trainer.pictures import Pictures, some_pictures
from fmri2img.trainer.state import (
    Best,
    Identity,
    Resumed,
    checkpoints_of,
    find_resumable,
    load_weights,
    write_step,
)
from fmri2img.trainer.watch import Record, Watch

Listener = Callable[[Record], None]


@dataclass(frozen=True)
class StageSpec:
    """What a stage is told. Paths are strings so that a spec travels between processes as plain data."""

    recipe: dict[str, Any]
    data: str
    subjects: tuple[str, ...]
    run: str
    sessions: tuple[int, ...] | None = None
    parent: str | None = None
    wandb: bool = False
    # Finetuning keeps the heads of the parent's subjects beside the new one.
    keep_heads: bool = False
    engine: Literal["deepspeed", "accelerate"] = "deepspeed"
    # A named split of the training partition to train on.
    split: str = "train"

    def config(self) -> dict[str, Any]:
        """The resolved configuration that the checkpoint stores."""
        sessions = None if self.sessions is None else list(self.sessions)
        return {
            "recipe": self.recipe,
            "subjects": list(self.subjects),
            "sessions": sessions,
            "fingerprint": Dataset.open(Path(self.data)).fingerprint,
        } | ({} if self.split == "train" else {"split": self.split})


@dataclass(frozen=True)
class Material:
    """The data of a stage: training samples, validation pictures and target spaces."""

    dataset: Dataset
    tables: dict[str, Samples]
    validation: dict[str, PictureRows]
    spaces: dict[str, TargetSpace]
    voxels: dict[str, int]


def open_material(spec: StageSpec, recipe: Recipe, config: TrainingConfig) -> Material:
    """Open the data set and check that it has the subjects and the feature spaces of the recipe."""
    dataset = Dataset.open(Path(spec.data))
    for subject in spec.subjects:
        if subject not in dataset.subjects:
            raise InputError(f"{spec.data} has no {subject}: its subjects are {', '.join(dataset.subjects)}")
    check_spaces(dataset, recipe)
    if spec.split in dataset.splits and dataset.splits[spec.split].partition != "train":
        raise InputError(f"--split {spec.split} is of test pictures: train on a split of training pictures")
    spaces = {
        name: target_space(
            name,
            *dataset.feature_statistics(name),
            directed=space.directed,
            prior=space.prior,
            factor=space.factor,
        )
        for name, space in recipe.spaces.items()
    }
    tables = {
        subject: with_sessions(dataset.samples(subject, spec.split), spec.sessions)
        for subject in spec.subjects
    }
    validation: dict[str, PictureRows] = {}
    if config.validation:
        tables, held = hold_out(tables, seed=config.seed, fraction=config.validation)
        for subject, out in held.items():
            validation[subject] = picture_rows(dataset, out, list(recipe.spaces), sessions=spec.sessions)
    voxels = {subject: dataset.inputs(subject) for subject in spec.subjects}
    return Material(dataset, tables, validation, spaces, voxels)


def check_spaces(dataset: Dataset, recipe: Recipe) -> None:
    """Raise InputError unless every space of the recipe is cached in the data set as the recipe makes it."""
    for name, space in recipe.spaces.items():
        entry = dataset.feature_spaces.get(name)
        if entry is None:
            raise InputError(
                f"{dataset.path} has no features {name}: run `fmri2img features {dataset.path} --recipe {recipe.name}`"
            )
        if not made_by(space.extractor, entry.extractor):
            raise InputError(
                f"{dataset.path} has features {name} made by {dict(entry.extractor)}, the recipe wants "
                f"{space.extractor.model_dump(mode='json')}: give the space another name in the recipe"
            )


def pretrain(spec: StageSpec, *, listener: Listener | None = None) -> Path:
    """Pretrain on all subjects of the spec, in every process of the group; returns the checkpoint.

    Raises InputError before any training for a spec that cannot work, on all ranks.
    """
    recipe = Recipe.model_validate(spec.recipe)
    config = recipe.pretraining
    check_layout(config, spec.subjects)
    material = open_material(spec, recipe, config)
    decoder = _fresh(recipe, material, config)
    resumed = find_resumable(Path(spec.run), spec.config())
    if resumed is not None:
        load_weights(decoder, resumed.model)
    elif config.start == "ridge":
        _on_rank_zero(
            decoder, lambda: start_as_ridge(decoder, _rows(material, recipe, spec, config), seed=config.seed)
        )
    engine = (
        DeepSpeedEngine(decoder, config) if spec.engine == "deepspeed" else AccelerateEngine(decoder, config)
    )

    def finish(tensors: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
        copy = _fresh(recipe, material, config)
        load_weights(copy, tensors)
        kept: dict[str, Tensor] = {}

        def fit() -> None:
            if copy.alignment.kept:
                fit_alignment(copy, _rows(material, recipe, spec, config), seed=config.seed)
            if config.trial_latents:
                kept.update(trial_latents(copy, _trials(material, recipe, spec)))

        _on_rank_zero(copy, fit)
        return {schema.MODEL_NAME: dict(copy.state_dict())} | ({schema.TRIALS_NAME: kept} if kept else {})

    return _run(
        spec, recipe, config, material, engine, resumed, listener=listener, finish=finish, parent=None
    )


def finetune(spec: StageSpec, *, listener: Listener | None = None) -> Path:
    """Train one subject on one device with Accelerate, from a pretrained decoder (`spec.parent`) or from nothing.

    With a parent, the new head starts in closed form from what the parent knows of pictures and voxels.
    """
    recipe = Recipe.model_validate(spec.recipe)
    config = recipe.finetuning
    (subject,) = spec.subjects
    check_layout(config, spec.subjects, world=1)
    material = open_material(spec, recipe, config)
    parent, found = None, None
    if spec.parent is not None:
        found = schema.resolve(Path(spec.parent))
        for line in found.warnings:
            output().print(line, markup=False)
        parent = schema.parent_record(found)
        loaded = load_decoder(found.path)
        if not isinstance(loaded, MultiSubjectDecoder):
            raise InputError(
                f"{found.path} is a {found.manifest.kind} decoder: only a pretrained decoder can be finetuned"
            )
        _check_same_shape(found, recipe)
        decoder = loaded
        torch.manual_seed(config.seed)
        decoder.with_subjects(material.voxels, keep=_keeps_heads(spec, config))
        if config.trainable == "lora":
            decoder.add_adapters(config.lora_rank)
    else:
        if config.freeze:
            raise InputError(
                f"finetuning.freeze {config.freeze} keeps parts of a pretrained decoder, and there is none: pass its "
                "run with --from, or leave freeze out"
            )
        decoder = _fresh(recipe, material, config)
    resumed = find_resumable(Path(spec.run), spec.config(), parent=parent)
    if resumed is not None:
        load_weights(decoder, resumed.model)
    elif found is not None:
        _start_head(decoder, subject, found, spec, recipe, material)
    elif config.start == "ridge":
        start_as_ridge(decoder, _rows(material, recipe, spec, config), seed=config.seed)
    phases = None if parent is None else _phases(decoder, config, subject)
    engine = AccelerateEngine(decoder, config)
    return _run(
        spec,
        recipe,
        config,
        material,
        engine,
        resumed,
        listener=listener,
        finish=None,
        parent=parent,
        others=_kept_subjects(spec, found),
        phases=phases,
    )


def _keeps_heads(spec: StageSpec, config: TrainingConfig) -> bool:
    if spec.keep_heads and config.trainable != "head":
        raise InputError(
            f"trainable {config.trainable} changes what subjects share, so the heads of others could not be kept: "
            "set finetuning.trainable=head, or leave --keep-heads out"
        )
    return spec.keep_heads


def _kept_subjects(spec: StageSpec, found: schema.Found | None) -> dict[str, schema.SubjectRecord]:
    """The parent's subjects whose heads are kept."""
    if found is None or not spec.keep_heads:
        return {}
    return {name: record for name, record in found.manifest.subjects.items() if name not in spec.subjects}


def _phases(
    decoder: MultiSubjectDecoder, config: TrainingConfig, subject: str
) -> Callable[[int], None] | None:
    """Fix what this finetuning leaves as it is; a function of the step where that changes on the way."""
    named = dict(decoder.named_parameters())
    head = {name for name in named if name.startswith((f"heads.{subject}.", f"rebuild.{subject}."))}
    adapted = {name for name in named if ".adapter." in name}
    if config.trainable in ("head", "lora"):
        free = head | (adapted if config.trainable == "lora" else set())
        for name, parameter in named.items():
            parameter.requires_grad_(name in free)
        return None
    free = {name for name in named if name.split(".")[0] not in config.freeze}
    for name, parameter in named.items():
        parameter.requires_grad_(name in free)
    if config.trainable == "whole":
        return None

    def before(step: int) -> None:
        for name in free:
            named[name].requires_grad_(name in head or step >= config.head_share * config.steps)

    return before


def fit_ridge_baseline(spec: StageSpec) -> Path:
    """Fit the linear baseline of one subject on all its training pictures and commit it like any decoder."""
    recipe = Recipe.model_validate(spec.recipe)
    config = recipe.finetuning.model_copy(update={"validation": 0.0})
    material = open_material(spec, recipe, config)
    decoder = RidgeDecoder(material.voxels, material.spaces)
    for subject, rows in _rows(material, recipe, spec, config).items():
        decoder.fit(subject, rows, seed=config.seed)
    folder = Path(spec.run) / schema.CHECKPOINTS_FOLDER
    identity = _identity(spec, recipe, material, None)
    tensors = {schema.MODEL_NAME: dict(decoder.state_dict())}
    return write_step(folder, 0, schema.new_token(), tensors, identity, metrics={}, kind="ridge")


def _run(
    spec: StageSpec,
    recipe: Recipe,
    config: TrainingConfig,
    material: Material,
    engine: Engine,
    resumed: Resumed | None,
    *,
    listener: Listener | None,
    finish: Callable[[dict[str, Tensor]], dict[str, dict[str, Tensor]]] | None,
    parent: schema.ParentRecord | None,
    others: Mapping[str, schema.SubjectRecord] | None = None,
    phases: Callable[[int], None] | None = None,
) -> Path:
    run = Path(spec.run)
    first = 0
    if resumed is not None:
        first = resumed.step
        if first >= config.steps:
            return schema.resolve(run).path
        engine.load_optimiser(resumed.moments)
        engine.load_ema(resumed.ema)
        engine.skipped = first - int(resumed.moments[COUNT])
        for loaded in (resumed.model, resumed.moments, resumed.ema):
            loaded.clear()  # they would stay on every rank's host until the run ends
    plan = SamplingPlan(
        material.tables,
        fingerprint=material.dataset.fingerprint,
        seed=config.seed,
        global_batch=config.global_batch,
        lanes=config.lanes,
        sessions=spec.sessions,
    )
    loader = BatchLoader(
        material.dataset,
        material.tables,
        plan,
        list(recipe.spaces),
        rank=rank(),
        world_size=world_size(),
        seed=config.seed,
        noise=config.noise,
        priors={name: space.prior for name, space in recipe.spaces.items() if space.prior is not None},
        workers=config.reading_threads,
    )
    pictures = _pictures(run, recipe, config, material, engine.device)
    watch = None
    if rank() == 0:
        run.mkdir(parents=True, exist_ok=True)
        schema.clean_stale(checkpoints_of(run))
        watch = Watch(
            run,
            first_step=first,
            total=config.steps,
            config=spec.config(),
            wandb=spec.wandb,
            listener=listener,
        )
    identity = _identity(spec, recipe, material, parent)
    identity.subjects.update(others or {})
    metrics, best = (dict[str, float](), Best()) if resumed is None else (resumed.metrics, resumed.best)
    job = Job(
        run,
        engine,
        loader,
        config,
        recipe.spaces,
        material.validation,
        identity,
        watch,
        finish,
        phases,
        metrics=metrics,
        best=best,
        pictures=pictures,
        losses=recipe.losses,
    )
    try:
        return train(job, first_step=first)
    finally:
        if watch is not None:
            watch.close()


def _pictures(
    run: Path, recipe: Recipe, config: TrainingConfig, material: Material, device: torch.device
) -> Pictures | None:
    if not config.pictures_every:
        return None
    rows = some_pictures(material.dataset, material.validation)
    return Pictures(run, recipe.generator, rows, seed=config.seed, device=device)


def _fresh(recipe: Recipe, material: Material, config: TrainingConfig) -> MultiSubjectDecoder:
    torch.manual_seed(config.seed)
    return recipe.decoder.build(material.voxels, material.spaces)


def _rows(
    material: Material, recipe: Recipe, spec: StageSpec, config: TrainingConfig
) -> dict[str, PictureRows]:
    single = config.fits_on == "trials"
    return {
        subject: picture_rows(
            material.dataset, table, list(recipe.spaces), sessions=spec.sessions, single=single
        )
        for subject, table in material.tables.items()
    }


def _trials(material: Material, recipe: Recipe, spec: StageSpec) -> dict[str, Trials]:
    return {
        subject: read_trials(material.dataset, table, list(recipe.spaces), spec.sessions)
        for subject, table in material.tables.items()
    }


def _start_head(
    decoder: MultiSubjectDecoder,
    subject: str,
    found: schema.Found,
    spec: StageSpec,
    recipe: Recipe,
    material: Material,
) -> None:
    """Fit the new subject's head as the recipe says."""
    config = recipe.finetuning
    if config.head == "random":
        return None
    if config.head != "paired":
        rows = _rows(material, recipe, spec, config)[subject]
        return fit_head(decoder, subject, rows, seed=config.seed, method=config.head)
    if schema.TRIALS_NAME not in found.manifest.files:
        raise InputError(
            f"{found.path} keeps no latents of single trials, which head: paired is fitted to: "
            "pretrain with pretraining.trial_latents: true, or use head: posterior"
        )
    trials = _trials(material, recipe, spec)[subject]
    pairs = paired_targets(schema.load_tensors(found.path, schema.TRIALS_NAME), trials.places)
    fit_head(decoder, subject, trials.rows, seed=config.seed, method="paired", paired=pairs)


def _on_rank_zero(decoder: MultiSubjectDecoder, work: Callable[[], object]) -> None:
    """Do the work on rank 0 and give every rank its result; a failure fails all ranks together."""
    error: Exception | None = None
    if rank() == 0:
        try:
            work()
        except Exception as caught:  # told to all ranks by the next line
            error = caught
    fail_together(error)
    if world_size() > 1:
        tensors = broadcast_object(dict(decoder.state_dict()) if rank() == 0 else None)
        assert tensors is not None
        load_weights(decoder, tensors)


def _identity(
    spec: StageSpec, recipe: Recipe, material: Material, parent: schema.ParentRecord | None
) -> Identity:
    dataset = material.dataset
    subjects = {
        name: schema.SubjectRecord(
            voxels=count, dataset=dataset.manifest.name, fingerprint=dataset.fingerprint
        )
        for name, count in material.voxels.items()
    }
    spaces = {
        name: schema.FeatureSpaceRecord(
            shape=space.shape,
            dtype="float32",
            extractor=recipe.spaces[name].extractor.model_dump(mode="json"),
        )
        for name, space in material.spaces.items()
    }
    return Identity(spec.config(), recipe.name, subjects, spaces, parent)


def _check_same_shape(found: schema.Found, recipe: Recipe) -> None:
    """Raise InputError unless the recipe asks for the feature spaces and the sizes of the parent."""
    has = {name: record.extractor for name, record in found.manifest.feature_spaces.items()}
    wants: Mapping[str, Any] = {
        name: space.extractor.model_dump(mode="json") for name, space in recipe.spaces.items()
    }
    if has != wants:
        raise InputError(
            f"{found.path} predicts {has}, the recipe {recipe.name} asks for {dict(wants)}: "
            f"finetune with the recipe it was pretrained with ({found.manifest.recipe})"
        )
    told = json.loads((found.path / schema.CONFIG_NAME).read_text())["recipe"]
    for name, space in recipe.spaces.items():
        factor = told["spaces"][name].get("factor")
        if factor != space.factor:
            raise InputError(
                f"{found.path} has for {name} the factor {factor}, the recipe {recipe.name} asks for {space.factor}: "
                "leave it as it was in pretraining"
            )
        prior = prior_of(told["spaces"][name])
        trained, wanted = (None if p is None else p.trained_as() for p in (prior, space.prior))
        if trained != wanted:
            raise InputError(
                f"{found.path} has for {name} the prior {trained}, the recipe {recipe.name} asks for {wanted}: leave "
                f"what decides its weights as it was in pretraining; {', '.join(sorted(FREE))} may change"
            )
    was = DecoderConfig.model_validate(told.get("decoder", {}))
    before = sorted(name for name, space in told["spaces"].items() if is_directed(space))
    now = sorted(name for name, space in recipe.spaces.items() if space.directed)
    if was != recipe.decoder or before != now:
        raise InputError(
            f"{found.path} has {was.model_dump(mode='json')} and contrasts {before}, the recipe {recipe.name} asks for "
            f"{recipe.decoder.model_dump(mode='json')} and contrasts {now}: leave `decoder` and which spaces have a "
            "contrastive loss as they were in pretraining"
        )
