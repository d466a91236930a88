"""Real hosts on one machine: Linux network namespaces joined by a bridge, each with its own address and name.

`with hosts(3) as lab:` makes them, `lab.start_ray()` makes them a Ray cluster, and `lab.host(1).cut()`, `.heal()`,
`.delay("50ms")`, `.loss("5%")`, `.bandwidth("10mbit")` and `.kill()` are what may happen to one. Needs root and the
commands `ip`, `tc` and `unshare`. Names hold the process id: what a killed process left is swept away by the next.
"""

import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

NAME = "f2i"
BIN = Path(sys.executable).parent
PORT = 6399
OBJECT_STORE = 100_000_000
ETC = Path("/etc/netns")


def missing() -> str | None:
    """Why there can be no hosts here, or None."""
    lacking = [name for name in ("ip", "tc", "unshare") if shutil.which(name) is None]
    if lacking:
        return f"network namespaces need {', '.join(lacking)}, not found here"
    if os.geteuid() != 0:
        return "network namespaces need root"
    name = f"{NAME}probe{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if made.returncode:
        return f"this kernel gives no network namespaces: {made.stderr.strip()}"
    _ip("netns", "del", name)
    return None


def _ip(*words: object) -> str:
    done = subprocess.run(["ip", *map(str, words)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"ip {' '.join(map(str, words))}: {done.stderr}"
    return done.stdout


def wait_for(what: Callable[[], object], *, seconds: float, told: str) -> None:
    """Until it is so; AssertionError that says what was not, after `seconds`."""
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, f"not within {seconds:.0f} s: {told}"
        time.sleep(0.05)


class Host:
    """One namespace: an address, a name, what runs in it and what its link does."""

    def __init__(self, lab: "Lab", number: int) -> None:
        self.lab, self.number = lab, number
        self.name = f"{lab.prefix}-{number}"
        self.link = f"{lab.prefix}v{number}"
        self.address = f"{lab.subnet}.{10 + number}"
        self.folder = Path("/tmp") / self.name

    def words(self, words: Sequence[object]) -> list[str]:
        """The command that runs `words` on this host."""
        inside = 'hostname "$0" && exec "$@"'
        entered = ["ip", "netns", "exec", self.name, "unshare", "--uts", "sh", "-c", inside, self.name]
        return [*entered, *map(str, words)]

    def start(self, *words: object, log: Path | None = None, **env: str) -> "subprocess.Popen[str]":
        """Start a command on this host; its output goes into `log`, or to pipes."""
        out = subprocess.PIPE if log is None else open(log, "ab")  # noqa: SIM115 closed below
        process = subprocess.Popen(
            self.words(words),
            cwd="/tmp",
            env=self.lab.env | env,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.PIPE if log is None else subprocess.STDOUT,
            text=True,
        )
        if not isinstance(out, int):
            out.close()
        self.lab.started.append(process)
        return process

    def run(self, *words: object, timeout: float = 200, **env: str) -> "subprocess.CompletedProcess[str]":
        """Run a command on this host to its end."""
        return subprocess.run(
            self.words(words),
            cwd="/tmp",
            env=self.lab.env | env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def start_ray(self, *, workers: int = 1) -> None:
        """Start this host's Ray node: host 0 is the head, others join it."""
        head = self.lab.hosts[0]
        at = ["--head", f"--port={PORT}"] if self is head else [f"--address={head.address}:{PORT}"]
        settings = [
            f"--node-ip-address={self.address}",
            f"--object-store-memory={OBJECT_STORE}",
            f"--num-cpus={workers + 1}",
            f'--resources={{"fmri2img_worker": {workers}}}',
            "--disable-usage-stats",
            "--block",
        ]
        if self is head:
            settings += ["--include-dashboard=false", f"--temp-dir={self.folder}"]
        self.start(BIN / "ray", "start", *at, *settings, log=self.folder / "ray.log")

    def wait_for_ray(self) -> None:
        """Until this host's Ray node is up."""
        log = self.folder / "ray.log"
        wait_for(lambda: "runtime started" in log.read_text(), seconds=150, told=f"Ray is up on {self.name}")

    @property
    def pids(self) -> list[int]:
        """Ids of all processes on this host."""
        return [int(word) for word in _ip("netns", "pids", self.name).split()]

    def kill(self) -> "Host":
        """End everything that runs on this host at once, as a power cut does."""
        for pid in self.pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        wait_for(lambda: not self.pids, seconds=10, told=f"{self.name} is empty")
        return self

    def cut(self) -> "Host":
        """Take this host's link down."""
        _ip("link", "set", self.link, "down")
        return self

    def heal(self) -> "Host":
        """Bring the link up again, with nothing in its way."""
        _ip("link", "set", self.link, "up")
        for tc, device in self._ends():
            subprocess.run([*tc, "qdisc", "del", "dev", device, "root"], capture_output=True, check=False)
        return self

    def delay(self, time: str) -> "Host":
        """Delay what this host sends and what it gets, by as much each."""
        return self._shape("netem", "delay", time)

    def loss(self, share: str) -> "Host":
        """Lose that share of the packets, both ways."""
        return self._shape("netem", "loss", share)

    def bandwidth(self, rate: str) -> "Host":
        """Let no more than that pass, each way."""
        return self._shape("tbf", "rate", rate, "burst", "64kb", "latency", "400ms")

    def _shape(self, *words: str) -> "Host":
        for tc, device in self._ends():
            change = [*tc, "qdisc", "replace", "dev", device, "root", *words]
            done = subprocess.run(change, capture_output=True, text=True, check=False)
            if "qdisc kind is unknown" in done.stderr:
                pytest.skip(f"this kernel has no {words[0]}, which shapes links")
            assert done.returncode == 0, done.stderr
        return self

    def _ends(self) -> list[tuple[list[str], str]]:
        return [(["tc"], self.link), (["tc", "-n", self.name], "eth0")]


class Lab:
    """The hosts and the bridge between them."""

    def __init__(self, count: int) -> None:
        pid = os.getpid()
        self.prefix = f"{NAME}{pid}"
        self.bridge = f"{self.prefix}b"
        self.subnet = f"10.{64 + pid // 250 % 128}.{pid % 250 + 1}"
        self.hosts = [Host(self, number) for number in range(count)]
        self.started: list[subprocess.Popen[str]] = []
        self.env = {
            **{k: v for k, v in os.environ.items() if not k.startswith("RAY_")},
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(16),
            # A node counts as lost after some seconds of silence; by Ray's own settings it takes half a minute.
            "RAY_health_check_initial_delay_ms": "1000",
            "RAY_health_check_period_ms": "1000",
            "RAY_health_check_timeout_ms": "4000",
            "RAY_health_check_failure_threshold": "3",
            "RAY_raylet_start_wait_time_s": "120",
        }

    def host(self, number: int) -> Host:
        """One of the hosts; 0 is the head of the Ray cluster."""
        return self.hosts[number]

    @property
    def address(self) -> str:
        """Where the head of the Ray cluster listens."""
        return f"{self.hosts[0].address}:{PORT}"

    def make(self) -> None:
        """Make bridge, namespaces, links, addresses and names."""
        _ip("link", "add", self.bridge, "type", "bridge")
        _ip("addr", "add", f"{self.subnet}.1/24", "dev", self.bridge)
        _ip("link", "set", self.bridge, "up")
        names = "".join(f"{host.address} {host.name}\n" for host in self.hosts)
        for host in self.hosts:
            host.folder.mkdir()
            (ETC / host.name).mkdir(parents=True)
            (ETC / host.name / "hosts").write_text(f"127.0.0.1 localhost\n{names}")
            _ip("netns", "add", host.name)
            _ip("link", "add", host.link, "type", "veth", "peer", "name", "eth0", "netns", host.name)
            _ip("link", "set", host.link, "master", self.bridge, "up")
            _ip("-n", host.name, "addr", "add", f"{host.address}/24", "dev", "eth0")
            _ip("-n", host.name, "link", "set", "eth0", "up")
            _ip("-n", host.name, "link", "set", "lo", "up")

    def start_ray(self, *, workers: int = 1) -> None:
        """Start a Ray node with that many slots for workers on every host, and wait until all have joined."""
        head, *others = self.hosts
        head.start_ray(workers=workers)
        head.wait_for_ray()
        for host in others:
            host.start_ray(workers=workers)
        for host in others:
            host.wait_for_ray()


def _sweep(prefix: str) -> None:
    """Remove everything whose name begins so: processes, namespaces, links, folders."""
    for name in re.findall(rf"^{prefix}(?!\d)\S*", _ip("netns", "list"), re.MULTILINE):
        for pid in _ip("netns", "pids", name).split():
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        _ip("netns", "del", name)
    for link in re.findall(rf"^\d+: ({prefix}(?!\d)\w*)", _ip("-o", "link"), re.MULTILINE):
        # A namespace takes its end of a link away with it, in its own time.
        subprocess.run(["ip", "link", "del", link], capture_output=True, check=False)
    for folder in [*ETC.glob(f"{prefix}-*"), *Path("/tmp").glob(f"{prefix}-*")]:
        shutil.rmtree(folder, ignore_errors=True)


def sweep_dead() -> None:
    """Remove what processes that are no more left behind."""
    found = re.findall(rf"^{NAME}(\d+)", _ip("netns", "list"), re.MULTILINE)
    found += re.findall(rf"^\d+: {NAME}(\d+)", _ip("-o", "link"), re.MULTILINE)
    for pid in sorted(set(found)):
        if not Path(f"/proc/{pid}").exists():
            _sweep(f"{NAME}{pid}")


@contextmanager
def hosts(count: int) -> Iterator[Lab]:
    """That many hosts, for as long as the block runs."""
    sweep_dead()
    lab = Lab(count)
    try:
        lab.make()
        yield lab
    finally:
        _sweep(lab.prefix)
        for process in lab.started:
            process.wait(10)
            for pipe in (process.stdout, process.stderr):
                if pipe is not None:
                    pipe.close()
