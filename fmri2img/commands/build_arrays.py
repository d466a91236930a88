"""`fmri2img data build arrays`."""

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional, UseAppendAction

from fmri2img.commands.building import build


@dataclass(frozen=True)
class BuildArrays:
    """Make a data set of npz, mat or HDF5 arrays that a small YAML file describes."""

    out: Positional[Path]
    """the folder to make"""
    spec: Path
    """the YAML file"""
    root: Path | None = None
    """folder that the YAML file's paths start from; its own folder otherwise"""
    set: UseAppendAction[tuple[str, ...]] = ()
    """key.key=value to change in the YAML file, for example split.test_sessions=[3]"""

    def run(self) -> None:
        from fmri2img.datasets import ArraysSource, ArraysSpec

        spec = ArraysSpec.load(self.spec, root=self.root, overrides=list(self.set))
        build(ArraysSource(spec), self.out, normalise=spec.normalise)
