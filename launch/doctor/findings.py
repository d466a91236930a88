"""What facts mean: one finding a check, and for those that fail what to do. Pure functions of facts."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from fmri2img.console import output

GB = 1e9
LEAST_SHARED = 1 * GB
LEAST_DISK = 1 * GB
LEAST_MEMORY = 2 * GB
LEAST_FILES = 4096
LEAST_PROCESSES = 4096
MOST_SKEW = 2.0  # seconds
SLOW_DISK = 50e6  # bytes a second

State = Literal["ok", "warn", "fail"]


class Finding(BaseModel):
    """The result of one check on one node, or on the whole cluster."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    node: str
    check: str
    state: State
    value: str
    way_out: str = ""


def failed(findings: Sequence[Finding]) -> list[Finding]:
    """Those that a job would fail of."""
    return [finding for finding in findings if finding.state == "fail"]


def judge_node(node: str, facts: Mapping[str, Any]) -> list[Finding]:
    """Findings about one node."""
    found = []

    def add(check: str, good: bool, value: str, way_out: str, *, otherwise: State = "fail") -> None:
        state: State = "ok" if good else otherwise
        found.append(
            Finding(node=node, check=check, state=state, value=value, way_out="" if good else way_out)
        )

    memory = facts["memory"]
    add(
        "memory",
        memory["free"] >= LEAST_MEMORY,
        f"{memory['free'] / GB:.1f} of {memory['total'] / GB:.1f} GB free",
        "end what else runs there, or use another node",
        otherwise="warn",
    )
    shared = facts["shared_memory"]
    add(
        "shared memory",
        shared is not None and shared >= LEAST_SHARED,
        "none" if shared is None else f"{shared / GB:.1f} GB free in /dev/shm",
        "give the container more (docker run --shm-size=8g), or remove what fills /dev/shm",
        otherwise="warn",
    )
    files = facts["open_files"]
    add(
        "open files",
        files < 0 or files >= LEAST_FILES,
        _limit(files),
        "raise it: ulimit -n 65536",
        otherwise="warn",
    )
    tasks = facts["processes"]
    add("processes", tasks < 0 or tasks >= LEAST_PROCESSES, _limit(tasks), "raise it: ulimit -u 65536")
    if "gpus" in facts:
        add("devices", True, _devices(facts), "")
    for name, folder in facts["folders"].items():
        _judge_folder(name, folder, add)
    if "mark" in facts:
        add(
            "shared folder",
            facts["mark"],
            "sees the run folder" if facts["mark"] else "does not see the run folder",
            "put data and run folder on a file system that every node mounts at the same path",
        )
    offline = facts["hub_offline"]
    value = (
        f"offline, cache {facts['hub_cache']}"
        if offline
        else f"online when needed, cache {facts['hub_cache']}"
    )
    add("model hub", True, value, "")
    online = facts["wandb_mode"] == "online"
    add(
        "wandb",
        not online or facts["wandb_key"],
        facts["wandb_mode"],
        "log in with `wandb login`, or leave WANDB_MODE out to keep runs offline",
        otherwise="warn",
    )
    return found


def _judge_folder(name: str, folder: Mapping[str, Any], add: Any) -> None:
    if name == "data":
        add(
            "data folder",
            folder["exists"],
            folder["path"],
            "mount it there, or copy the data set to the same path on this node",
        )
        return
    free = folder["free"] or 0
    add(
        f"{name} folder",
        folder["writable"] and free >= LEAST_DISK,
        f"{folder['path']}: {free / GB:.1f} GB free" + ("" if folder["writable"] else ", not writable"),
        "free some space there, or give another folder" if folder["writable"] else "change its permissions",
        otherwise="warn" if name == "cache" else "fail",
    )
    if "write_speed" in folder:
        speed = folder["write_speed"]
        add(
            f"{name} speed",
            speed >= SLOW_DISK,
            f"{speed / 1e6:.0f} MB/s written",
            "checkpoints will take long: use a faster file system",
            otherwise="warn",
        )


def judge_cluster(facts: Mapping[str, Mapping[str, Any]], skews: Mapping[str, float]) -> list[Finding]:
    """Findings about nodes together: `skews` are seconds by which clocks are ahead of the driver's."""
    found = []
    names = list(dict.fromkeys(name for one in facts.values() for name in one["versions"]))
    for name in names:
        versions = {node: one["versions"].get(name, "none") for node, one in facts.items()}
        (usual, _), *others = Counter(versions.values()).most_common()
        odd = sorted(node for node, version in versions.items() if version != usual)
        value = usual if not others else f"{usual}, but " + ", ".join(f"{versions[n]} on {n}" for n in odd)
        way_out = f"install {name} {usual} on {', '.join(odd)}" if others else ""
        found.append(
            Finding(node="all", check=name, state="fail" if others else "ok", value=value, way_out=way_out)
        )
    for node, one in facts.items():
        own = one["own_address"]
        if len(facts) > 1 and not one.get("gpus") and (own is None or own.startswith("127.")):
            found.append(
                Finding(
                    node=node,
                    check="own name",
                    state="warn",
                    value=f"{one['host']} is {own} to itself",
                    way_out="others cannot reach gloo there: set GLOO_SOCKET_IFNAME to the interface of the cluster",
                )
            )
    for node, skew in skews.items():
        good = abs(skew) <= MOST_SKEW
        found.append(
            Finding(
                node=node,
                check="clock",
                state="ok" if good else "warn",
                value=f"{skew:+.3f} s from the driver's",
                way_out="" if good else "synchronise it with NTP: times in logs and heartbeats mislead",
            )
        )
    return found


def _limit(value: int) -> str:
    return "no limit" if value < 0 else str(value)


def _devices(facts: Mapping[str, Any]) -> str:
    gpus = Counter(f"{gpu['name']} {gpu['memory'] / GB:.0f} GB" for gpu in facts["gpus"])
    listed = (
        ", ".join(f"{count} × {name}" for name, count in gpus.items())
        or f"{facts['cpus']} processors, no GPU"
    )
    versions = ", ".join(f"{name} {value}" for name, value in facts["cuda"].items() if value != "none")
    return f"{listed} ({versions})" if versions else listed


def show_findings(findings: Sequence[Finding]) -> None:
    """Print a table, with what to do under each finding that is not good."""
    from rich.markup import escape
    from rich.table import Table

    table = Table("node", "check", "", "found")
    marks = {"ok": "[green]✓[/green]", "warn": "[yellow]![/yellow]", "fail": "[red]✗[/red]"}
    for finding in findings:
        value = escape(finding.value) + (
            f"\n[bold]{escape(finding.way_out)}[/bold]" if finding.way_out else ""
        )
        table.add_row(escape(finding.node), finding.check, marks[finding.state], value)
    output().print(table)
