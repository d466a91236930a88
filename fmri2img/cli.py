"""The `fmri2img` command: parse, run, and turn every expected failure into one line and an exit code.

Exit codes: 0 done, 1 failed, 2 usage or bad input, 75 stopped but resumable.
"""

import contextlib
import io
import os
import re
import sys
from collections.abc import Sequence

import tyro

from fmri2img.commands import Command
from fmri2img.errors import Fmri2imgError

TRACEBACK = "FMRI2IMG_TRACEBACK"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit."""
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code. `FMRI2IMG_TRACEBACK=1` shows where an error came from."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            command = tyro.cli(Command, prog="fmri2img", args=list(arguments), description=_DESCRIPTION)
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 2
        if code:
            print(f"fmri2img: error: {_one_line(said.getvalue())}", file=sys.stderr)
        return code
    try:
        command.run()
    except Fmri2imgError as error:
        return _failed(error, str(error), error.exit_code)
    except KeyboardInterrupt:
        print(
            "fmri2img: stopped by the keyboard: the same command goes on from what is done", file=sys.stderr
        )
        return 130
    except OSError as error:
        name = f" ({error.filename})" if error.filename else ""
        return _failed(error, f"{error.strerror or error}{name}: nothing half-written was kept", 1)
    return 0


_DESCRIPTION = "Train decoders that turn a person's brain activity (fMRI) back into the picture they saw."


def _failed(error: BaseException, message: str, code: int) -> int:
    if os.environ.get(TRACEBACK):
        raise error
    print(f"fmri2img: error: {' '.join(message.split())}", file=sys.stderr)
    return code


def _one_line(box: str) -> str:
    """tyro draws its messages in a box over several lines; scripts and logs want one."""
    lines = [re.sub(r"[─-╿]+", " ", line).strip() for line in box.splitlines()]
    return "; ".join(line for line in lines if line) or "the command line could not be understood: see --help"
