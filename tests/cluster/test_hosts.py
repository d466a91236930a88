"""The harness itself: hosts reach each other, feel what is done to them, and leave nothing behind."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ANSWERS = "import socket, sys; socket.create_connection((sys.argv[1], 80), timeout=float(sys.argv[2]))"


RECEIVES = """
import socket, sys
with socket.create_server((sys.argv[1], 81)) as server:
    print("ready", flush=True)
    with server.accept()[0] as link:
        while link.recv(1 << 16):
            pass
        link.sendall(b"!")
"""
SENDS = """
import socket, sys, time
with socket.create_connection((sys.argv[1], 81)) as link:
    begun = time.monotonic()
    link.sendall(bytes(int(sys.argv[2])))
    link.shutdown(socket.SHUT_WR)
    link.recv(1)
    print(time.monotonic() - begun)
"""


def sent(lab: Any, made: Any, count: int) -> float:
    """Seconds until `count` bytes have come from host 0 to host 1."""
    log = made.host(1).folder / "received"
    log.unlink(missing_ok=True)
    server = made.host(1).start(sys.executable, "-c", RECEIVES, made.host(1).address, log=log)
    lab.wait_for(lambda: log.exists() and "ready" in log.read_text(), seconds=20, told="a server")
    done = made.host(0).run(sys.executable, "-c", SENDS, made.host(1).address, count)
    assert server.wait(20) == 0
    return float(done.stdout)


def ping(lab: Any, one: int, other: int) -> float | None:
    """Seconds until a refused connection says that the other host is there; None when nothing comes back in 2 s."""
    begun = time.monotonic()
    done = lab.host(one).run(sys.executable, "-c", ANSWERS, lab.host(other).address, 2)
    assert done.returncode
    return time.monotonic() - begun if "ConnectionRefusedError" in done.stderr else None


def test_hosts_have_names_and_addresses_of_their_own_and_may_be_cut_off_and_come_back(lab: Any) -> None:
    with lab.hosts(2) as made:
        assert made.host(1).run("hostname").stdout.strip() == made.host(1).name
        assert ping(made, 0, 1) is not None
        made.host(1).cut()
        assert ping(made, 0, 1) is None
        made.host(1).heal()
        assert ping(made, 0, 1) is not None


def test_a_delayed_link_takes_its_time_both_ways(lab: Any) -> None:
    with lab.hosts(2) as made:
        near = ping(made, 0, 1)
        made.host(1).delay("300ms")
        far = ping(made, 0, 1)
        assert near is not None and far is not None and far > near + 0.5
        made.host(1).heal()
        again = ping(made, 0, 1)
        assert again is not None and again < near + 0.5


def test_a_narrow_link_passes_no_more_than_it_is_told(lab: Any) -> None:
    with lab.hosts(2) as made:
        fast = sent(lab, made, 1_000_000)
        made.host(1).bandwidth("4mbit")
        assert sent(lab, made, 1_000_000) > 1.5 > fast


def test_nothing_is_left_of_hosts_and_what_runs_on_them(lab: Any) -> None:
    with lab.hosts(2) as made:
        process = made.host(1).start("sleep", 1000)
        lab.wait_for(lambda: made.host(1).pids, seconds=5, told="it runs")
        prefix = made.prefix
    assert process.wait(5) == -9
    told = subprocess.run("ip netns; ip link", shell=True, capture_output=True, text=True, check=True).stdout
    assert prefix not in told
    assert not list(Path("/tmp").glob(f"{prefix}-*"))


def test_what_a_killed_process_left_is_swept_away_by_the_next(lab: Any, tmp_path: Path) -> None:
    script = tmp_path / "made.py"
    script.write_text(
        f"import runpy, os\nlab = runpy.run_path({str(Path(lab.__file__))!r})\n"
        "with lab['hosts'](1) as made:\n    print(made.prefix, flush=True)\n    os.kill(os.getpid(), 9)\n"
    )
    killed = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    prefix = killed.stdout.strip()
    assert killed.returncode == -9 and re.fullmatch(r"f2i\d+", prefix)
    assert prefix in subprocess.run(["ip", "netns"], capture_output=True, text=True, check=True).stdout
    lab.sweep_dead()
    assert prefix not in subprocess.run(["ip", "netns"], capture_output=True, text=True, check=True).stdout
    assert not os.path.exists(f"/tmp/{prefix}-0")
