"""What one node is and has. Runs on that node; everything it returns is plain data, which Ray carries to the driver."""

import importlib.metadata
import os
import platform
import resource
import shutil
import socket
import time
import uuid
from pathlib import Path
from typing import Any

PACKAGES = ("fmri2img", "torch", "ray", "deepspeed", "accelerate", "numpy")
WRITTEN = 64 << 20


def gather_facts(folders: dict[str, str], *, measure: bool, mark: str | None = None) -> dict[str, Any]:
    """Facts of this node.

    `folders` are those that a job needs, by what they are for. With `measure` the speed of writing to them is taken,
    and GPUs are asked, which imports torch. `mark` is the path of a file that the driver wrote where all nodes read.
    """
    facts: dict[str, Any] = {
        "host": socket.gethostname(),
        "time": time.time(),
        "versions": _versions(),
        "cpus": os.cpu_count(),
        "memory": _memory(),
        "shared_memory": _free(Path("/dev/shm")),
        "open_files": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        "processes": resource.getrlimit(resource.RLIMIT_NPROC)[0],
        "own_address": _own_address(),
        "folders": {name: _folder(Path(path), measure=measure) for name, path in folders.items()},
        "hub_offline": os.environ.get("HF_HUB_OFFLINE", "") in ("1", "true", "TRUE"),
        "hub_cache": os.environ.get("HF_HOME", str(Path.home() / ".cache" / "huggingface")),
        "wandb_mode": os.environ.get("WANDB_MODE", "offline"),
        "wandb_key": "WANDB_API_KEY" in os.environ or (Path.home() / ".netrc").is_file(),
    }
    if mark is not None:
        facts["mark"] = Path(mark).is_file()
    if measure:
        facts["gpus"], facts["cuda"] = _gpus()
    return facts


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "none"
    return found


def _memory() -> dict[str, int]:
    """Bytes of memory, of the machine as a whole."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    amounts = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}
    return {"total": amounts["MemTotal"], "free": amounts["MemAvailable"]}


def _free(path: Path) -> int | None:
    return shutil.disk_usage(path).free if path.is_dir() else None


def _own_address() -> str | None:
    """What this node's name means to itself: gloo listens there."""
    try:
        return socket.gethostbyname(socket.gethostname())
    except OSError:
        return None


def _folder(path: Path, *, measure: bool) -> dict[str, Any]:
    """The folder, or for one that is still to be made the nearest above it."""
    place = next(p for p in (path, *path.absolute().parents) if p.exists())
    writable = place.is_dir() and os.access(place, os.W_OK | os.X_OK)
    free = _free(place)
    told: dict[str, Any] = {"path": str(path), "exists": path.is_dir(), "writable": writable, "free": free}
    if measure and writable and (free or 0) > 4 * WRITTEN:
        told["write_speed"] = _write_speed(place)
    return told


def _write_speed(folder: Path) -> float:
    """Bytes a second of writing 64 MiB, until they are on the disk."""
    path = folder / f".fmri2img-speed-{uuid.uuid4().hex[:8]}"
    block = os.urandom(1 << 20)
    begun = time.perf_counter()
    try:
        with open(path, "wb") as file:
            for _ in range(WRITTEN >> 20):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
        return WRITTEN / (time.perf_counter() - begun)
    finally:
        path.unlink(missing_ok=True)


def _gpus() -> tuple[list[dict[str, Any]], dict[str, str]]:
    import torch

    gpus = []
    for number in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(number)
        gpus.append({"name": device.name, "memory": device.total_memory})
    cuda = {"cuda": str(torch.version.cuda or "none")}
    if gpus:
        cuda["nccl"] = ".".join(map(str, torch.cuda.nccl.version()))
        driver = Path("/proc/driver/nvidia/version")
        cuda["driver"] = driver.read_text().splitlines()[0] if driver.is_file() else "unknown"
    return gpus, cuda
