"""What every `fmri2img data build ...` does once it knows its source."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fmri2img.console import output, stage

if TYPE_CHECKING:
    from fmri2img.datasets import TrialSource


def names_of(texts: Sequence[str]) -> tuple[str, ...]:
    """Subjects given as words, with commas, or both."""
    return tuple(name for text in texts for name in text.split(",") if name)


def build(source: "TrialSource", out: Path, *, unit: str = "trials", **settings: Any) -> None:
    """Build the data set with progress, and say what comes next. `settings` are those of `build_dataset`."""
    from fmri2img.datasets import build_dataset

    with stage("Data set", unit) as tell:
        build_dataset(source, out, progress=lambda what, done, total: tell(done, total, what), **settings)
    output().print(f"Data set in {out}; next: fmri2img features {out}")
