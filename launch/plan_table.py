"""A plan as a person reads it."""

from rich.markup import escape
from rich.table import Table

from fmri2img.console import output
from fmri2img.launch.plan_memory import Setting, say_bytes
from fmri2img.launch.planning import Plan

_SHORT = {"none": "", "optimizer": " + offload", "optimizer-and-parameters": " + offload of both"}


def show_plan(plan: Plan) -> None:
    """Print what a job needs, and memory by ZeRO stage."""
    facts = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, value in _facts(plan):
        facts.add_row(f"[bold]{name}[/bold]", escape(value))
    output().print(facts)
    memory = Table("ZeRO", "device", "host", "most in", "of that", "", title="memory of one rank")
    for setting in plan.settings:
        memory.add_row(*_row(setting, plan.chosen))
    output().print(memory)


def _row(setting: Setting, chosen: Setting) -> tuple[str, ...]:
    mine = (setting.zero_stage, setting.offload) == (chosen.zero_stage, chosen.offload)
    name = f"{setting.zero_stage}{_SHORT[setting.offload]}" + (" (recipe)" if mine else "")
    if setting.refused:
        return name, "", "", "", escape(setting.refused), "[red]✗[/red]"
    largest = sorted(setting.items.items(), key=lambda item: -item[1])[:3]
    told = ", ".join(f"{item} {say_bytes(size)}" for item, size in largest)
    mark = {True: "[green]fits[/green]", False: "[red]does not fit[/red]", None: ""}[setting.fits]
    return (
        name,
        say_bytes(setting.device_peak),
        say_bytes(setting.host_peak) if setting.host_peak else "",
        setting.phase,
        told,
        mark,
    )


def _facts(plan: Plan) -> list[tuple[str, str]]:
    layout, times, reading = plan.layout, plan.times, plan.reading
    total = sum(plan.parameters.values())
    limit = "" if plan.device_memory is None else f" with {say_bytes(plan.device_memory)} each"
    parts = ", ".join(f"{part} {_millions(count)}" for part, count in plan.parameters.items())
    read = f"{sum(reading.trials.values())} trials of {len(plan.subjects)} subjects"
    node = f"{max(reading.shards)} shards, {say_bytes(max(reading.bytes_read))}"
    found = [
        ("recipe", f"{plan.recipe} on {plan.data}"),
        ("cluster", f"{plan.workers} workers on {plan.nodes} nodes, {plan.device}{limit}"),
        ("parameters", f"{_millions(total)}: {parts}; buffers {_millions(plan.buffers)}"),
        ("layout", f"{layout.lanes} lanes; numbers of workers that can be: {_list(layout.world_sizes)}"),
        (
            "batch",
            f"{layout.global_batch} rows a step, {layout.rows_by_rank} a rank, {layout.rows} of each subject, in "
            f"{layout.micro_batches} micro-batch" + ("es" if layout.micro_batches > 1 else ""),
        ),
        ("data", f"{read}; a node reads {node}" + (", all of it fetched" if reading.cache else "")),
        ("host", f"{say_bytes(plan.host_by_node)} a node at most"),
        (
            "step",
            f"{_seconds(times.step)}, at least {_seconds(times.at_peak)}; {times.flops / 1e12:.3g} TFLOP a rank",
        ),
        ("", times.source),
        ("wire", f"{say_bytes(times.wire)} a rank and step"),
        ("epoch", f"{times.steps_per_epoch} steps, {_seconds(times.epoch)}"),
        ("training", f"{times.steps} steps, {_seconds(times.training)}"),
        (
            "checkpoint",
            f"{say_bytes(plan.checkpoint.size)}, {say_bytes(plan.checkpoint.kept)} kept; each stops training for "
            f"{_seconds(plan.checkpoint.stall)}, {plan.checkpoint.count} times",
        ),
        (
            "reconstruction",
            f"{plan.reconstruction.items} test pictures, {_seconds(plan.reconstruction.seconds)}"
            + ("" if plan.reconstruction.seconds_each else ": use --measure"),
        ),
    ]
    return found


def _list(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))


def _millions(count: int) -> str:
    return f"{count / 1e9:.2f} G" if count >= 1e9 else f"{count / 1e6:.2f} M"


def _seconds(value: float | None) -> str:
    if value is None:
        return "not known"
    if value < 120:
        return f"{value:.3g} s"
    return f"{value / 60:.0f} min" if value < 7200 else f"{value / 3600:.1f} h"
