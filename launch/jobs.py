"""What the commands of the three jobs do: check, show progress, call the part that works, say where the result is."""

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from fmri2img import checkpoints_schema as schema
from fmri2img.console import Tell, output, stage
from fmri2img.datasets import Dataset
from fmri2img.datasets.remote import absolute, address_of
from fmri2img.errors import DamageError, InputError
from fmri2img.evaluation import Evaluation, EvaluationSettings, Measure
from fmri2img.evaluation.audit_results import Audit
from fmri2img.evaluation.protocols import protocol
from fmri2img.files import alone, write_json
from fmri2img.launch.auditing import AUDIT, audit, checkpoint_of
from fmri2img.launch.cluster import Place, cluster
from fmri2img.launch.devices import choose_devices
from fmri2img.launch.doctor import preflight
from fmri2img.launch.events import EVENTS, telling
from fmri2img.launch.folders import check_folder
from fmri2img.launch.items import flag_error, plan_job
from fmri2img.launch.judging import Candidates, judge, open_judging
from fmri2img.launch.pretraining import WORKERS, launch_pretraining
from fmri2img.launch.reconstruction import launch_reconstruction
from fmri2img.launch.torchrun import pretrain_here, started_by_torchrun
from fmri2img.trainer.config import Recipe
from fmri2img.trainer.stages import StageSpec, finetune, fit_ridge_baseline
from fmri2img.trainer.watch import METRICS, Record

SOURCE = "source.json"
EVALUATION = "metrics.json"
Audited = Literal["none", "features", "pictures"]


def chosen_subjects(dataset: Dataset, subjects: Sequence[str], hold_out: Sequence[str]) -> tuple[str, ...]:
    """Subjects to train on. Raises InputError for names that the data set does not have."""
    unknown = sorted({*subjects, *hold_out} - set(dataset.subjects))
    if unknown:
        raise InputError(
            f"{dataset.path} has no {', '.join(unknown)}: its subjects are {', '.join(dataset.subjects)}"
        )
    twice = sorted({s for s in subjects if list(subjects).count(s) > 1})
    if twice:
        raise InputError(f"--subjects names {', '.join(twice)} more than once: name every subject once")
    chosen = tuple(s for s in subjects or dataset.subjects if s not in set(hold_out))
    if not chosen:
        raise InputError(f"holding out {', '.join(hold_out)} leaves no subject to train on: hold out fewer")
    return chosen


def check_run_folder(out: Path, *, kind: Literal["decoder", "ridge"]) -> None:
    """Raise InputError when `out` cannot be the folder of a run, or holds a run of the other kind."""
    check_folder(out, ("checkpoints", METRICS, WORKERS, EVENTS), what="run")
    found = schema.find_latest(out)
    for line in () if found is None else found.warnings:
        output().print(line, markup=False)
    if found is not None and found.manifest.kind != kind:
        raise InputError(
            f"{out} holds a run that made a {found.manifest.kind}, not a {kind}: give another --out"
        )


def listener(tell: Tell) -> Any:
    """Turn training records into progress."""

    def listen(record: Record) -> None:
        shown = {"train/loss": "loss", "validation/loss": "validation"}
        note = "  ".join(f"{label} {record[name]:.3f}" for name, label in shown.items() if name in record)
        tell(record["step"], record["total"], note)

    return listen


def pretraining(
    recipe: Recipe,
    data: Path,
    out: Path,
    *,
    subjects: tuple[str, ...],
    place: Place,
    wandb: bool = False,
    split: str = "train",
) -> Path:
    """Pretrain with progress; returns the checkpoint."""
    check_run_folder(out, kind="decoder")
    plain = recipe.model_dump(mode="json")
    spec = StageSpec(plain, str(data), subjects, str(out), wandb=wandb, split=split)
    with stage(f"Pretraining on {', '.join(subjects)}", "steps") as tell:
        if started_by_torchrun():
            return pretrain_here(spec, place, listener=listener(tell))
        return launch_pretraining(spec, place, listener=listener(tell))


def finetuning(
    recipe: Recipe,
    data: Path,
    out: Path,
    *,
    subject: str,
    sessions: int | None,
    start: Path | Literal["scratch", "ridge"],
    keep_heads: bool = False,
    wandb: bool = False,
    look_first: bool = True,
    split: str = "train",
) -> Path:
    """Finetune, or fit a baseline, with progress; returns the checkpoint. `look_first` is the preflight."""
    parent = str(start) if isinstance(start, Path) else None
    check_run_folder(out, kind="ridge" if start == "ridge" else "decoder")
    dataset = Dataset.open(data)
    if subject not in dataset.subjects:
        raise InputError(f"{data} has no {subject}: its subjects are {', '.join(dataset.subjects)}")
    most = max(dataset.manifest.subjects[subject].sessions)
    if sessions is not None and not 1 <= sessions <= most:
        raise InputError(f"--sessions {sessions}: {subject} has sessions 1 to {most}, use one of these")
    chosen = None if sessions is None else tuple(range(1, sessions + 1))
    plain = recipe.model_dump(mode="json")
    spec = StageSpec(plain, str(data), (subject,), str(out), chosen, parent, wandb, keep_heads, split=split)
    how = {"scratch": "From scratch", "ridge": "Ridge regression"}.get(str(start), "Finetuning")
    with _own_run(out, "finetune"), stage(f"{how} on {subject}", "steps") as tell:
        if look_first:
            preflight(address=None, data=data, out=out)
        if start == "ridge":
            return fit_ridge_baseline(spec)
        return finetune(spec, listener=listener(tell))


@contextmanager
def _own_run(out: Path, job: str) -> Iterator[None]:
    """A run of this process alone: nobody else works in its folder, and its story is told there."""
    out.mkdir(parents=True, exist_ok=True)
    busy = f"{out} is in use by another job: wait for its end, or give another --out"
    with alone(out, busy), telling(out, job, workers=1):
        yield


def reconstruction(
    checkpoint: Path,
    data: Path,
    out: Path,
    *,
    place: Place | None,
    subjects: Sequence[str],
    devices: str = "auto",
    threads: int = 1,
    resume: bool = True,
    verify: bool = False,
    **settings: Any,
) -> Path:
    """Reconstruct with progress; returns the manifest. `settings` are those of `ReconstructionJob`."""
    if threads < 0:
        raise InputError(f"--threads {threads}: use 0 to overlap nothing, or a number of threads that write")
    with ExitStack() as connected:
        if place is not None and place.address is not None:
            connected.enter_context(cluster(place))  # what GPUs there are, only the cluster knows
        chosen = choose_devices(devices, place)
        job = plan_job(checkpoint, data, subjects=subjects, device=chosen.kind, **settings)
        title = f"Reconstructing {job.split} of {', '.join(job.subjects)}"
        with stage(title, "pictures") as tell:
            path = launch_reconstruction(
                job,
                checkpoint,
                data,
                out,
                place=place,
                progress=tell,
                devices=chosen,
                threads=threads,
                resume=resume,
                verify=verify,
            )
    write_json(out / SOURCE, {"data": str(absolute(data)), "checkpoint": str(checkpoint.resolve())})
    return path


def evaluation(
    made: Path,
    data: Path,
    *,
    candidates: Candidates = "split",
    captions: Path | None = None,
    devices: str = "cpu",
    audited: Audited = "none",
    **settings: Any,
) -> Evaluation:
    """Evaluate, with the fields of `EvaluationSettings`, and write `metrics.json` beside the reconstruction.

    Where an audit is asked for, `audit.json` is written too; an older one is of older scores and goes.
    """
    try:
        how = EvaluationSettings(**settings)
    except ValidationError as error:
        raise flag_error(error) from error
    with stage(f"Evaluating {made}", "pictures"):
        device = choose_devices(devices, None).first
        result = judge(made, data, how, candidates=candidates, captions=captions, device=device)
    result.write(made / EVALUATION)
    (made / AUDIT).unlink(missing_ok=True)
    if audited != "none":
        judging = open_judging(made, data, how, candidates=candidates, device=device)
        with stage(f"Auditing {made}", "steps") as tell:
            found = audit(
                made, judging, result, checkpoint_of(made), pictures=audited == "pictures", tell=tell
            )
        found.write(made / AUDIT)
    return result


def source_of(made: Path, data: Path | None) -> Path:
    """The data set that a reconstruction was made from, as given or as noted when it was made."""
    if not made.is_dir():
        raise InputError(f"there is no folder {made}: give the folder of a reconstruction")
    if data is not None:
        return data
    path = made / SOURCE
    if not path.is_file():
        raise InputError(f"{made} does not say which data it was made from: pass --data, the data set folder")
    try:
        noted = Path(json.loads(path.read_bytes())["data"])
    except (ValueError, KeyError, TypeError) as error:
        raise DamageError(f"{path} is damaged: pass --data, the data set folder") from error
    if address_of(noted) is None and not noted.is_dir():
        raise InputError(
            f"{made} was made from {noted}, which is not there any more: pass --data, where it is now"
        )
    return noted


def show(evaluations: dict[str, Evaluation]) -> None:
    """Print the table of scores."""
    from rich.table import Table

    names = list(dict.fromkeys(name for result in evaluations.values() for name in result.headlines()))
    table = Table("", *evaluations, "chance")
    for name in names:
        cells = [_cell(result.metrics.get(name)) for result in evaluations.values()]
        first = next(r.metrics[name] for r in evaluations.values() if name in r.metrics)
        label = first.label + ("" if first.higher_is_better else ", lower is better")
        table.add_row(label, *cells, "" if first.chance is None else f"{first.chance:.3f}")
    output().print(table)


def _cell(found: Measure | None) -> str:
    """A mean with its interval over pictures and, after ±, its standard deviation over samples of each."""
    if found is None:
        return ""
    spread = "" if found.seeds is None else f" ±{found.seeds.deviation:.3f}"
    return f"{found.value:.3f} [dim]{found.low:.3f}–{found.high:.3f}{spread}[/dim]"


def show_audit(made: Path) -> None:
    """Print what an audit found, where there is one."""
    if not (made / AUDIT).is_file():
        return
    for finding in Audit.read(made / AUDIT).findings:
        output().print(
            f"{'FOUND' if finding.found else 'clear'}  {finding.name}: {finding.sentence}", markup=False
        )


def show_published(name: str, result: Evaluation) -> None:
    """Print what is missing of a result and, where a protocol was asked for, published results beside it."""
    from rich.table import Table

    for label, reason in result.missing.items():
        output().print(f"Missing: {label}: {reason}", markup=False)
    if result.settings.protocol is None:
        return
    comparable = [row for row in result.published if row.comparable]
    rows = comparable or [row for row in result.published if row.headline]
    if not rows:
        return
    shown = [m for m in protocol(result.settings.protocol).order() if m in result.metrics]
    table = Table("", *(result.metrics[metric].label for metric in shown))
    table.add_row(name, *(f"{result.metrics[metric].value:.3f}" for metric in shown))
    for row in rows:
        kind = f"{row.method}, {row.sessions} sessions, {row.split}"
        cells = (f"{row.values[metric]:.3f}" if metric in row.values else "" for metric in shown)
        table.add_row(kind if row.comparable else f"[dim]{kind} (not comparable)[/dim]", *cells)
    output().print(table)
    if not comparable:
        output().print(f"No published result is comparable. The first: {rows[0].why}.", markup=False)
