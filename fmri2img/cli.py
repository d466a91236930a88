"""The `fmri2img` command: parse, run, and turn every expected failure into one line and an exit code.

Exit codes: 0 done, 1 failed, 2 usage or bad input, 75 stopped but resumable.
"""

import contextlib
import io
import os
import re
import signal
import sys
from collections.abc import Iterator, Sequence
from typing import Any, get_args

import tyro

from fmri2img.commands import Command
from fmri2img.errors import Fmri2imgError, StoppedError
from fmri2img.trainer import stopping

TRACEBACK = "FMRI2IMG_TRACEBACK"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit."""
    signal.signal(signal.SIGTERM, _terminated)
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code. `FMRI2IMG_TRACEBACK=1` shows where an error came from."""
    try:
        command = _parse(arguments)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 2
    try:
        command.run()
    except Fmri2imgError as error:
        return _failed(error, str(error), error.exit_code)
    except KeyboardInterrupt as error:
        _failed(error, "stopped by the keyboard: the same command goes on from what is done", 130)
        return 130
    except OSError as error:
        name = f" ({error.filename})" if error.filename else ""
        way_out = "mend that and run the same command again, it goes on from what is done"
        return _failed(error, f"{error.strerror or error}{name}: {way_out}", 1)
    return 0


_DESCRIPTION = "Train decoders that turn a person's brain activity (fMRI) back into the picture they saw."


def _parse(arguments: Sequence[str]) -> Any:
    """The command with its flags. SystemExit, after help or one line of error."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(Command, prog="fmri2img", args=list(arguments), description=_DESCRIPTION)
    except SystemExit as stop:
        if stop.code:
            # tyro breaks its message at the terminal's width, here a second time at none.
            said = io.StringIO()
            with _wide(), contextlib.redirect_stderr(said), contextlib.suppress(SystemExit):
                tyro.cli(Command, prog="fmri2img", args=list(arguments), description=_DESCRIPTION)
            print(f"fmri2img: error: {_one_line(said.getvalue(), arguments)}", file=sys.stderr)
        raise


@contextlib.contextmanager
def _wide() -> Iterator[None]:
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "10000"
    try:
        yield
    finally:
        os.environ.pop("COLUMNS")
        if before is not None:
            os.environ["COLUMNS"] = before


def _terminated(signum: int, frame: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if stopping.ask():
        return
    raise StoppedError("stopped by SIGTERM: the same command goes on from what is done")


def _failed(error: BaseException, message: str, code: int) -> int:
    if os.environ.get(TRACEBACK):
        raise error
    print(f"fmri2img: error: {' '.join(message.split())}", file=sys.stderr)
    return code


def _one_line(box: str, arguments: Sequence[str]) -> str:
    """tyro draws its messages in a box over several lines; scripts and logs want one: what is wrong, where to look."""
    drawn = r"[─-╿]+|-{3,}|^\s*[|+]|[|+]\s*$"  # where the terminal knows no boxes, they are of -, | and +
    lines = [re.sub(drawn, " ", line).strip() for line in box.splitlines()]
    lines = [line for line in lines if line]
    text = "\n".join(lines)
    parts = []
    if unknown := re.search(r"Unrecognized options:\s(.+)", text, re.DOTALL):
        words = re.split(r"\n(?:Perhaps|Available|For full|Arguments)", unknown[1])[0].split()
        parts.append(f"unrecognized {' '.join(word.rstrip(',') for word in words)}")
    if near := re.search(r"Perhaps you meant:\n(--[\w-]+)", text):
        parts.append(f"did you mean {near[1]}?")
    if missing := re.search(r"Missing from .*?:\n(.+)", text, re.DOTALL):
        ahead = missing[1].split("Unrecognized options")[0].splitlines()
        names = [line.split()[0] for line in ahead if re.match(r"--[\w-]|[A-Z]+$", line)]
        parts.append(f"missing {', '.join(names)}")
    if "Missing subcommand" in text:
        parts.append("a command is missing")
    if among := re.search(r"(?:Expected one of \{|Available subcommands: )([\w, -]+)", text):
        parts.append(f"use one of {among[1].strip()}")
    if value := re.search(r"Error parsing (--[\w-]+): .*\b(int|float)\b[^'\n]*: '(.*?)'", text, re.DOTALL):
        wanted = "a whole number" if value[2] == "int" else "a number"
        parts.append(f"{value[1]} {value[3]}: the value must be {wanted}")
    if choice := re.search(r"invalid choice '(.*?)' for argument '(.*?)'\. Expected one of \((.*)\)", text):
        allowed = sorted(word for word in re.findall(r"'(.*?)'", choice[3]) if word != "None")
        parts.append(f"{choice[2]} {choice[1]}: use one of {', '.join(allowed)}")
    if empty := re.search(r"Missing value for argument '(.*?)'", text):
        parts.append(f"{empty[1]} needs a value")
    kept = [line for line in lines if not line.startswith(("For full helptext", "fmri2img"))]
    told = "; ".join(parts or kept) or "the command line could not be understood"
    return f"{told}; see {_helped(text, arguments)} --help"


def _helped(text: str, arguments: Sequence[str]) -> str:
    """The command whose help belongs to an error."""
    named = re.search(r"(fmri2img(?: [a-z0-9-]+)+) --help", text)
    if named:
        return named[1]
    commands = {get_args(kind)[0].__name__.lower() for kind in get_args(get_args(Command)[0])}
    return f"fmri2img {arguments[0]}" if arguments and arguments[0] in commands else "fmri2img"
