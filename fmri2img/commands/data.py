"""`fmri2img data`: get data in, check them, look at them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import OmitArgPrefixes, OmitSubcommandPrefixes, Positional, subcommand

from fmri2img.commands.build_arrays import BuildArrays
from fmri2img.commands.build_braindiffuser import BuildBrainDiffuser
from fmri2img.commands.build_mindeye1 import BuildMindEye1
from fmri2img.commands.build_mindeye2 import BuildMindEye2
from fmri2img.commands.build_neuropictor import BuildNeuropictor
from fmri2img.commands.build_nsd import BuildNsd
from fmri2img.commands.build_simulated import BuildSimulated
from fmri2img.commands.data_fetch import DataFetch
from fmri2img.console import output, stage

Build = (
    Annotated[BuildSimulated, subcommand("simulated")]
    | Annotated[BuildArrays, subcommand("arrays")]
    | Annotated[BuildNsd, subcommand("nsd")]
    | Annotated[BuildMindEye2, subcommand("mindeye2")]
    | Annotated[BuildMindEye1, subcommand("mindeye1")]
    | Annotated[BuildBrainDiffuser, subcommand("braindiffuser")]
    | Annotated[BuildNeuropictor, subcommand("neuropictor")]
)


@dataclass(frozen=True)
class DataBuild:
    """Make a data set folder."""

    source: OmitSubcommandPrefixes[OmitArgPrefixes[Build]]

    def run(self) -> None:
        self.source.run()


@dataclass(frozen=True)
class DataVerify:
    """Read every byte of a data set and list all that is wrong with it."""

    path: Positional[Path]
    """the data set folder"""

    def run(self) -> None:
        from fmri2img.datasets import verify
        from fmri2img.datasets.remote import refuse_address
        from fmri2img.errors import DamageError

        refuse_address(self.path, "reading every byte again")
        with stage("Verifying", "files") as tell:
            problems = verify(self.path, progress=lambda what, done, total: tell(done, total, what))
        for problem in problems:
            output().print(str(problem), markup=False)
        if problems:
            raise DamageError(
                f"{self.path} has {len(problems)} problems, listed above: restore these files or build it anew"
            )
        output().print(f"{self.path}: every byte is as it was written")


@dataclass(frozen=True)
class DataInfo:
    """Say what a data set holds."""

    path: Positional[Path]
    """the data set folder"""

    def run(self) -> None:
        import yaml

        from fmri2img.datasets import info

        output().print(
            yaml.safe_dump(info(self.path), sort_keys=False, allow_unicode=True).rstrip(), markup=False
        )


DataAction = (
    Annotated[DataBuild, subcommand("build")]
    | Annotated[DataVerify, subcommand("verify")]
    | Annotated[DataInfo, subcommand("info")]
    | Annotated[DataFetch, subcommand("fetch")]
)


@dataclass(frozen=True)
class Data:
    """Get data in, check them, look at them."""

    action: OmitSubcommandPrefixes[OmitArgPrefixes[DataAction]]

    def run(self) -> None:
        self.action.run()
