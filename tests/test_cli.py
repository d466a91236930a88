"""The command line: what cannot be understood or done is one line on standard error and the right exit code."""

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from fmri2img import commands
from fmri2img.cli import run
from fmri2img.errors import DamageError, Fmri2imgError, InputError, StoppedError

SCRIPT = Path(sys.executable).with_name("fmri2img")


def failure(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """The exit code and the one line that a command leaves on standard error."""
    code = run(list(arguments))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("fmri2img: error: ")
    return code, lines[0].removeprefix("fmri2img: error: ")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("", "a command is missing; use one of data, features, pretrain, finetune, reconstruct, evaluate,"),
        ("bogus", "unrecognized bogus; use one of data,"),
        ("data", "a command is missing; use one of build, verify, info, split, fetch; see fmri2img data"),
        ("data build bogus", "unrecognized bogus; use one of simulated, arrays, nsd"),
        ("pretrain", "missing --data, --out; see fmri2img pretrain --help"),
        ("pretrain --dta x", "unrecognized --dta x; missing --data, --out; see fmri2img pretrain --help"),
        ("pretrain --data x --out y extra", "unrecognized extra; see fmri2img pretrain --help"),
        ("pretrain --data x --out y --worker 2", "unrecognized --worker 2; did you mean --workers?"),
        ("pretrain --data x --out y --workers two", "--workers two: give a number, or the fewest and the most, as in"),
        ("pretrain --data x --out", "--out needs a value; see fmri2img pretrain --help"),
        ("evaluate x --pool 1.5", "--pool 1.5: the value must be a whole number"),
        ("evaluate", "missing PATH; see fmri2img evaluate --help"),
        ("demo --size huge", "--size huge: use one of full, small; see fmri2img demo --help"),
        ("finetune --data x --subject a --out y --baseline no", "--baseline no: use one of ridge, scratch"),
        ("reconstruct --from x --data y --out z --repeats all", "--repeats all: use one of average, single"),
        ("finetune --data x --subject a --out y", "give either --from RUN"),
        ("finetune --data x --subject a --out y --from z --baseline ridge", "give either --from RUN"),
        ("pretrain --data x --out y --set steps", "--set 'steps' must be key=value"),
        ("pretrain --data x --out y --recipe bogus", "there is no recipe 'bogus': use one of default"),
        ("reconstruct --from x --data y --out z --workers -1", "--workers -1: use 0 to work in this process"),
        ("reconstruct --from x --data y --out z --workers 0 --cluster a:1", "--cluster a:1: say with --workers"),
        ("report", "give the folder of at least one evaluated reconstruction"),
    ],
)  # fmt: skip
def test_a_wrong_command_line_is_told_in_one_line(
    capsys: pytest.CaptureFixture[str], line: str, said: str
) -> None:
    code, message = failure(capsys, *line.split())
    assert code == 2
    assert message.startswith(said)


def test_the_line_does_not_depend_on_the_width_of_the_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    _, message = failure(capsys, "pretrain", "--data", "x", "--worker-number", "3")
    assert message == "unrecognized --worker-number 3; missing --out; see fmri2img pretrain --help"


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (InputError("--x 1: use 2"), 2, "--x 1: use 2"),
        (DamageError("a.tar: its sha256\n is wrong"), 1, "a.tar: its sha256 is wrong"),
        (Fmri2imgError("it failed"), 1, "it failed"),
        (StoppedError("stopped"), 75, "stopped"),
        (OSError(errno.ENOSPC, "No space left on device", "/d/a.png"), 1, "No space left on device (/d/a.png): mend"),
        (PermissionError(errno.EACCES, "Permission denied", "/d"), 1, "Permission denied (/d): mend"),
        (KeyboardInterrupt(), 130, "stopped by the keyboard: the same command goes on"),
    ],
)  # fmt: skip
def test_every_expected_failure_has_its_line_and_code(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    code: int,
    said: str,
) -> None:
    def fail(self: object) -> None:
        raise error

    monkeypatch.setattr(commands.Features, "run", fail)
    got, message = failure(capsys, "features", "x")
    assert got == code
    assert message.startswith(said)


def test_a_traceback_is_there_for_those_who_ask(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FMRI2IMG_TRACEBACK", "1")
    with pytest.raises(InputError):
        run(["features", str(tmp_path / "nowhere")])


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["pretrain", "--dta", "x"], 2, "unrecognized --dta x; missing --data, --out"),
        (["features", "/nowhere"], 2, "/nowhere is not a folder"),
        (["evaluate", "/nowhere"], 2, "there is no folder /nowhere"),
    ],
)
def test_the_installed_command_says_one_line_too(words: list[str], code: int, said: str) -> None:
    result = subprocess.run([SCRIPT, *words], capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == code
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    assert said in result.stderr


def test_help_goes_to_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["pretrain", "--help"]) == 0
    shown = capsys.readouterr()
    assert "--hold-out" in shown.out and shown.err == ""


def test_print_config_shows_what_a_checkpoint_would_store(capsys: pytest.CaptureFixture[str]) -> None:
    import yaml

    from fmri2img.config import load_recipe

    line = ["pretrain", "--data", "x", "--out", "y", "--set", "pretraining.steps=7", "--print-config"]
    assert run(line) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown == load_recipe("default", values=["pretraining.steps=7"]).model_dump(mode="json")
