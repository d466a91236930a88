"""The one training loop: the same inside Ray Train, under torchrun, and alone in a process."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fmri2img.checkpoints_schema import MODEL_NAME
from fmri2img.errors import Fmri2imgError, InputError, StoppedError
from fmri2img.models.closed_form import PictureRows
from fmri2img.models.decoder import Outputs
from fmri2img.trainer import stopping
from fmri2img.trainer.batches import Batch, BatchLoader
from fmri2img.trainer.collectives import gather_objects, mean_over_ranks, rank, world_size
from fmri2img.trainer.config import SpaceConfig, TrainingConfig
from fmri2img.trainer.engines import Engine
from fmri2img.trainer.guards import GraphGuard, WaitGuard
from fmri2img.trainer.objectives import (
    MicroBatches,
    Mixing,
    Place,
    ResponseLosses,
    active_mixing,
    decoder_loss,
    draw_mixing,
    noised,
)
from fmri2img.trainer.pictures import Pictures
from fmri2img.trainer.saving import Saver
from fmri2img.trainer.schedules import learning_rate, part_rates
from fmri2img.trainer.seeds import derive_seed
from fmri2img.trainer.state import Best, Identity
from fmri2img.trainer.throughput import Throughput
from fmri2img.trainer.validation import Metrics, TimeShare, validate
from fmri2img.trainer.watch import Watch


@dataclass(frozen=True)
class Job:
    """Everything one stage of training is made of."""

    run: Path
    engine: Engine
    loader: BatchLoader
    config: TrainingConfig
    spaces: Mapping[str, SpaceConfig]
    validation: Mapping[str, PictureRows]
    identity: Identity
    watch: Watch | None
    # Makes the files of the finished model from its weights.
    finish: Callable[[dict[str, Tensor]], dict[str, dict[str, Tensor]]] | None = None
    # Called before every step: frees and fixes parameters.
    phases: Callable[[int], None] | None = None
    # What the checkpoint that a run resumes from knew.
    metrics: Metrics = field(default_factory=dict)
    best: Best = field(default_factory=Best)
    pictures: Pictures | None = None
    # Of the decoder as a whole.
    losses: ResponseLosses = field(default_factory=ResponseLosses)


def train(job: Job, *, first_step: int) -> Path:
    """Train from `first_step` to the last and return the final checkpoint. Collective over all ranks.

    Raises Fmri2imgError when a loss or the gradient norm is not finite, on all ranks, naming step and term, and
    StoppedError when a stop was asked for (`trainer.stopping`), after a checkpoint of the step that was under way.
    """
    saver = Saver(job.run, job.engine, job.identity, keep=job.config.keep)
    try:
        with stopping.listening():
            return _train(job, saver, first_step)
    finally:
        saver.join()  # what was trained up to its step is kept, whatever happened after


def _train(job: Job, saver: Saver, first_step: int) -> Path:
    config, best = job.config, job.best
    share = TimeShare(config.validate_share)
    metrics = job.metrics
    if first_step == 0:
        with share.counted():
            metrics = _validate(job, 0, best)
    speed = Throughput(job.engine.decoder, config, job.engine.device, job.loader.plan.subjects)
    waiting = WaitGuard(threads=job.loader.workers, remote=job.loader.dataset.is_remote)
    for batch in job.loader.batches(first_step, config.steps):
        done = batch.step + 1
        logged = done % config.log_every == 0 or done == config.steps
        speed.begin(batch.waited, logged=logged)
        step = _step(job, batch, speed, guarded=batch.step == first_step)
        speed.end()
        if logged:
            _record_step(job, done, step, speed, waiting)
        if done == config.steps or (done % config.validate_every == 0 and share.allows()):
            with share.counted():
                metrics = _validate(job, done, best)
        if job.pictures is not None and (done % config.pictures_every == 0 or done == config.steps):
            path = job.pictures.draw(job.engine, done)
            if job.watch is not None:
                job.watch.record(done, {"pictures/validation": path})
        if (done % config.checkpoint_every == 0 or step.stop) and done < config.steps:
            begun = time.perf_counter()
            saver.save(done, metrics=metrics, best=best)
            speed.stalled(time.perf_counter() - begun)
            if step.stop:
                saver.wait()
                raise StoppedError(
                    f"stopped after step {done} of {config.steps}: the same command goes on from there"
                )
    return _save_final(job, saver, metrics, best)


@dataclass(frozen=True)
class _Step:
    """One update: the mean of every loss term over ranks, and whether any rank was asked to stop."""

    terms: Metrics
    norm: float
    rate: float
    stop: bool


def _record_step(job: Job, done: int, step: _Step, speed: Throughput, waiting: WaitGuard) -> None:
    """The record of one step. Collective."""
    figures = speed.figures()
    if job.watch is None:
        return
    job.watch.record(
        done,
        {
            **{f"train/{name}": value for name, value in step.terms.items()},
            "train/gradient_norm": step.norm,
            "train/learning_rate": step.rate,
            **{
                f"train/learning_rate/{part}": value
                for part, value in part_rates(job.config, done - 1).items()
            },
            "train/skipped_steps": job.engine.skipped,
            **figures,
        },
    )
    told = waiting.hear(figures["speed/data_wait_share"])
    if told is not None:
        job.watch.warn(told)


def _save_final(job: Job, saver: Saver, metrics: Metrics, best: Best) -> Path:
    """Commit the last step; the model is the last, the best or the averaged one, finished by `job.finish`."""
    model = job.engine.model_tensors()
    if job.config.select == "best" and best.step >= 0:
        model = best.tensors
        metrics = {**metrics, "validation/best_loss": best.loss, "validation/best_step": float(best.step)}
    if job.config.select == "ema":
        model = job.engine.ema_tensors()
    files = {MODEL_NAME: model} if job.finish is None else job.finish(model)
    path = saver.save(job.config.steps, metrics=metrics, finished=files)
    saver.wait()
    return path


def _step(job: Job, batch: Batch, speed: Throughput, *, guarded: bool) -> _Step:
    """One update. In a `guarded` step, ranks compare their graphs before anything is made of them."""
    engine, config = job.engine, job.config
    engine.decoder.train()
    if job.phases is not None:
        job.phases(batch.step)
    batch = batch.to(engine.device)
    speed.lap("to_device")
    guard = None
    if guarded and world_size() > 1:
        guard = GraphGuard(engine.decoder, batch.step, modules=config.zero_stage == 3)

    def forward(*asked: Any) -> Outputs:
        with guard.forward() if guard is not None else nullcontext():
            return engine.forward(*asked)

    def backward(loss: Tensor, *, last: bool) -> None:
        if guard is not None:
            guard.check(loss)
        engine.backward(loss, last=last)

    place = Place(batch.step, config.steps)
    mixing = _mixing(job, batch, place)
    responses = batch.responses if mixing is None else mixing.mix_responses(batch.responses)
    micro = MicroBatches(
        forward,
        backward,
        responses,
        parts=config.micro_batches,
        seed=lambda part: _seed_dropout(config, batch.step, part, engine.device),
        noised=noised(engine.decoder, batch.features, batch.draws, mixing),
    )
    outputs = micro.forward()
    losses = {name: space.losses for name, space in job.spaces.items()}
    loss = decoder_loss(
        engine.decoder,
        outputs,
        batch.features,
        batch.pictures,
        losses,
        place=place,
        mixing=mixing,
        draws=batch.draws,
        whole=job.losses,
        responses=responses,
    )
    *values, stop = mean_over_ranks(
        [*(float(value.detach()) for value in loss.terms.values()), stopping.asked()]
    )
    terms = dict(zip(loss.terms, values, strict=True))
    for name, value in terms.items():
        if not math.isfinite(value):
            raise Fmri2imgError(
                f"step {batch.step}: the loss {name} is {value}{_where(batch, outputs)}: nothing of this step was "
                "applied; lower learning_rate or check the data, then run the same command to go on from the last "
                "checkpoint"
            )
    speed.lap("forward")
    micro.backward(loss.backward)
    speed.lap("backward")
    rate = learning_rate(config, batch.step)
    norm = engine.step(rate)
    speed.lap("update")
    if not math.isfinite(norm):
        raise Fmri2imgError(
            f"step {batch.step}: the gradient norm is {norm}: the weights of this step are not used; "
            "lower learning_rate, then run the same command to go on from the last checkpoint"
        )
    return _Step({"loss": loss.total(terms), **terms}, norm, rate, stop=stop > 0)


def _where(batch: Batch, outputs: Outputs) -> str:
    """What is not finite in a batch whose loss is not: the first of responses, features, predictions. Collective."""
    rows = torch.cat([torch.full((len(x),), n) for n, x in enumerate(batch.responses.values())])
    subjects, found = list(batch.responses), [set[str](), set[str](), set[str]()]
    found[0] = {name for name, values in batch.responses.items() if not values.isfinite().all()}
    found[1] = {name for name, values in batch.features.items() if not values.isfinite().all()}
    latent, features, directions, denoised, *_ = outputs
    for values in (latent, *features.values(), *directions.values(), *denoised.values()):
        bad = ~values.detach().isfinite().flatten(1).all(1).cpu()
        found[2] |= {subjects[n] for n in rows[bad].unique().tolist()}
    everywhere = [set().union(*sets) for sets in zip(*gather_objects(found), strict=True)]
    for what, names in zip(("responses", "features", "predictions"), everywhere, strict=True):
        if names:
            return f", from {what} of {', '.join(sorted(names))} that are not finite"
    return ""


def _mixing(job: Job, batch: Batch, place: Place) -> Mixing | None:
    """What this rank's responses are mixed with at a step, when a loss asks for it."""
    settings = active_mixing([space.losses for space in job.spaces.values()], place)
    if settings is None:
        return None
    each = job.config.lanes // world_size()
    lanes = range(rank() * each, (rank() + 1) * each)
    rows = {name: len(values) for name, values in batch.responses.items()}
    return draw_mixing(settings, rows, lanes, seed=job.config.seed, step=batch.step).to(job.engine.device)


def _seed_dropout(config: TrainingConfig, step: int, part: int, device: torch.device) -> None:
    names = (config.seed, "dropout", step, rank())
    seed = derive_seed(*names, part) if config.micro_batches > 1 else derive_seed(*names)
    # `torch.manual_seed` goes through every kind of device, and where CUDA was never used it keeps each call for later.
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


def _validate(job: Job, done: int, best: Best) -> Metrics:
    """Loss and top-1 retrieval on the held-out training pictures, recorded under `validation/`."""
    if not job.validation:
        return {}
    place = Place.last(job.config.steps)
    metrics = validate(job.engine, job.validation, job.spaces, place, losses=job.losses, seed=job.config.seed)
    for name, value in metrics.items():
        if not math.isfinite(value):
            raise Fmri2imgError(
                f"step {done}: {name} is {value}: the weights of this step are not used; lower learning_rate or "
                "check the data, then run the same command to go on from the last checkpoint"
            )
    if metrics["validation/loss"] < best.loss:
        best.loss, best.step = metrics["validation/loss"], done
        if job.config.select == "best":
            best.tensors = job.engine.model_tensors()
    if job.watch is not None:
        job.watch.record(done, dict(metrics))
    return metrics


def check_layout(config: TrainingConfig, subjects: Sequence[str], world: int | None = None) -> None:
    """Refuse what cannot be divided fairly: workers over lanes, batch over lanes and subjects.

    Raises InputError with the admissible values.
    """
    world = world_size() if world is None else world
    if config.lanes % world:
        fits = [n for n in range(1, config.lanes + 1) if config.lanes % n == 0]
        raise InputError(
            f"{config.lanes} lanes cannot feed {world} workers: the number of workers must divide it. Use one of {fits}"
        )
    unit = config.lanes * len(subjects)
    if config.global_batch % unit:
        # What is offered must not be refused by the next rule.
        step = len(subjects) * math.lcm(config.lanes, world * config.micro_batches)
        below = max(step, config.global_batch // step * step)
        raise InputError(
            f"global_batch {config.global_batch} cannot hold {len(subjects)} subjects on {config.lanes} lanes equally: "
            f"it must be a multiple of {unit}. Use {below} or {below + step}"
        )
    rows = config.global_batch // (world * len(subjects))
    if rows % config.micro_batches:
        fits = [n for n in range(1, rows + 1) if rows % n == 0]
        raise InputError(
            f"micro_batches {config.micro_batches} cannot share the {rows} rows that a rank has of each subject "
            f"equally: it must divide them. Use one of {fits}"
        )
