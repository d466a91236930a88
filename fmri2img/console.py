"""What a person sees while a job runs: a live bar with rate and remaining time on a terminal, plain lines elsewhere."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

SECONDS_BETWEEN_LINES = 10.0


class Tell(Protocol):
    """Report that `done` of `total` is done, with a short note."""

    def __call__(self, done: int, total: int, note: str = "") -> None: ...


def output() -> Console:
    """The console of standard output, as it is now. Of the processes that torchrun started, the first one speaks."""
    quiet = "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("RANK", "0") != "0"
    return Console(file=sys.stdout, highlight=False, soft_wrap=not sys.stdout.isatty(), quiet=quiet)


@contextmanager
def stage(title: str, unit: str) -> Iterator[Tell]:
    """Show the progress of one part of a job; `unit` is what is counted, in the plural."""
    console = output()
    started = time.monotonic()
    if console.is_terminal:
        with _live(title, unit, console) as tell:
            yield tell
    else:
        console.print(f"{title} ...")
        yield _lines(title, unit, console)
    console.print(f"[green]✓[/green] {title} [dim]{time.monotonic() - started:.0f} s[/dim]")


@contextmanager
def _live(title: str, unit: str, console: Console) -> Iterator[Tell]:
    columns = (
        TextColumn("  {task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(unit),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("[dim]{task.fields[note]}"),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(title, total=None, note="")

        def tell(done: int, total: int, note: str = "") -> None:
            progress.update(task, completed=done, total=total, note=note)

        yield tell


class _Rate(ProgressColumn):
    def __init__(self, unit: str) -> None:
        super().__init__()
        self.unit = unit

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.1f} {self.unit}/s")


def _lines(title: str, unit: str, console: Console) -> Tell:
    started = last = time.monotonic()
    first: int | None = None

    def tell(done: int, total: int, note: str = "") -> None:
        nonlocal last, first
        now = time.monotonic()
        first = done if first is None else first
        if now - last < SECONDS_BETWEEN_LINES:
            return
        last = now
        rate = (done - first) / (now - started)
        left = f", {(total - done) / rate:.0f} s left" if rate > 0 else ""
        console.print(f"  {title}: {done}/{total} {unit}, {rate:.1f}/s{left} {note}".rstrip())

    return tell


def size_text(count: float) -> str:
    """A number of bytes in words, such as 1.5 GB."""
    size, unit = float(count), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if size < 999.5:
            break
        size, unit = size / 1000, larger
    return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.1f} {unit}"
