"""What a run does, told from its folder alone: any machine that sees the folder can ask, also when the run is over."""

import json
import time
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from fmri2img.console import output
from fmri2img.errors import InputError
from fmri2img.launch.events import BEAT_SECONDS, EVENTS, HEARTBEAT, checkpoint_steps, read_events
from fmri2img.launch.pretraining import WORKERS, read_workers
from fmri2img.trainer.watch import METRICS, Record, read_records

STALE_SECONDS = 6 * BEAT_SECONDS
RECENT = 20  # records that the rate is taken from
FAULTS = ("failed", "node-lost", "stopped")

State = Literal["running", "finished", "stopped", "dead", "unknown"]


class Status(BaseModel):
    """What is known of a run. Times are Unix seconds; steps count finished steps."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    run: str
    state: State
    job: str | None = Field(description="pretrain or finetune")
    step: int
    total: int | None
    loss: float | None
    steps_per_second: float | None = Field(description="over the last records of this start")
    seconds_left: float | None = Field(description="of a run that is running")
    checkpoint: int | None = Field(description="step of the newest committed checkpoint")
    heartbeat_age: float | None = Field(description="seconds since the driver was last heard of")
    driver: str | None = Field(description="host:pid")
    workers: list[dict[str, Any]] = Field(description="of the last start: rank, address, host, pid")
    starts: int
    lost_steps: int = Field(description="steps that were done again after failures")
    lost_seconds: float = Field(description="seconds without training after failures")
    faults: list[dict[str, Any]] = Field(description="events that interrupted the run, oldest first")
    reason: str | None = Field(description="why a stopped run stopped")


def read_status(run: Path, *, now: float | None = None) -> Status:
    """The status of a run folder. Raises InputError when it is none."""
    marks = ("checkpoints", METRICS, WORKERS, EVENTS)
    if not any((run / mark).exists() for mark in marks):
        raise InputError(f"{run} holds no run: give the folder that was --out of pretrain or finetune")
    now = time.time() if now is None else now
    events, records, beat = read_events(run), read_records(run), _heartbeat(run)
    age = None if beat is None else max(0.0, now - beat["time"])
    state = _state(events, age)
    last = records[-1] if records else {}
    starts = [event for event in events if event["event"] == "started"]
    rate = _rate([r for r in records if not starts or r["time"] >= starts[-1]["time"]])
    step, total = int(last.get("step", 0)), last.get("total")
    costs = [event for event in events if event["event"] == "restarted"]
    workers = read_workers(run)
    running = state == "running" and rate is not None and total is not None
    return Status(
        run=str(run),
        state=state,
        job=starts[-1]["job"] if starts else None,
        step=step,
        total=total,
        loss=next((r["train/loss"] for r in reversed(records) if "train/loss" in r), None),
        steps_per_second=rate,
        seconds_left=(total - step) / rate if running and rate and total is not None else None,
        checkpoint=max(checkpoint_steps(run), default=None),
        heartbeat_age=age,
        driver=None if beat is None else f"{beat['host']}:{beat['pid']}",
        workers=workers[-1] if workers else [],
        starts=len(starts),
        lost_steps=sum(cost["lost_steps"] for cost in costs),
        lost_seconds=round(sum(cost["seconds"] for cost in costs), 1),
        faults=[event for event in events if event["event"] in FAULTS],
        reason=events[-1]["reason"] if state == "stopped" else None,
    )


def _heartbeat(run: Path) -> dict[str, Any] | None:
    path = run / HEARTBEAT
    return json.loads(path.read_bytes()) if path.is_file() else None


def _state(events: list[dict[str, Any]], age: float | None) -> State:
    ended = events[-1]["event"] if events else None
    if ended in ("finished", "stopped"):
        return "finished" if ended == "finished" else "stopped"
    if age is None:
        return "unknown"
    return "running" if age < STALE_SECONDS else "dead"


def _rate(records: list[Record]) -> float | None:
    """Steps a second over the last records of training steps."""
    steps = [record for record in records if "train/loss" in record][-RECENT:]
    if len(steps) < 2 or steps[-1]["time"] <= steps[0]["time"]:
        return None
    return (steps[-1]["step"] - steps[0]["step"]) / (steps[-1]["time"] - steps[0]["time"])


SAID: dict[State, str] = {
    "running": "running",
    "finished": "finished",
    "stopped": "stopped: the same command goes on from the last checkpoint, unless the reason says otherwise",
    "dead": "dead: its driver ended without a word; the same command goes on from the last checkpoint",
    "unknown": "unknown: no driver tells of itself here, as under torchrun",
}


def show_status(status: Status) -> None:
    """Print a status for people."""
    from rich.table import Table

    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, value in _lines(status):
        table.add_row(f"[dim]{name}[/dim]", value)
    output().print(table)


def _lines(status: Status) -> list[tuple[str, str]]:
    from rich.markup import escape

    lines = [
        ("run", escape(f"{status.run} ({status.job or 'job not on record'})")),
        ("state", SAID[status.state]),
    ]
    if status.reason:
        lines.append(("reason", escape(status.reason)))
    loss = "" if status.loss is None else f", loss {status.loss:.4g}"
    lines.append(("step", f"{status.step} of {status.total if status.total is not None else '?'}{loss}"))
    if status.steps_per_second is not None:
        left = "" if status.seconds_left is None else f", {_duration(status.seconds_left)} left"
        lines.append(("rate", f"{status.steps_per_second:.3g} steps/s{left}"))
    lines.append(("checkpoint", "none yet" if status.checkpoint is None else f"step {status.checkpoint}"))
    if status.driver is not None and status.heartbeat_age is not None:
        lines.append(("driver", escape(f"{status.driver}, heard of {_duration(status.heartbeat_age)} ago")))
    for worker in status.workers:
        where = f"{worker['host']} {worker.get('address', '')} pid {worker['pid']}"
        lines.append((f"worker {worker['rank']}", escape(where)))
    cost = f", {status.lost_steps} steps done again, {status.lost_seconds:g} s without training"
    lines.append(("faults", f"{len(status.faults)}{cost if status.faults else ''}"))
    for fault in status.faults[-5:]:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(fault["time"]))
        what = fault.get("reason") or fault.get("address", "")
        lines.append(("", escape(f"{when}  {fault['event']}: {what}")))
    return lines


def _duration(seconds: float) -> str:
    whole = round(seconds)
    hours, minutes = divmod(whole // 60, 60)
    return (
        f"{hours} h {minutes} min" if hours else f"{minutes} min {whole % 60} s" if minutes else f"{whole} s"
    )
