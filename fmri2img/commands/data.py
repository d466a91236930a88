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


@dataclass(frozen=True)
class DataSplit:
    """Hold whole clusters of similar pictures out of training: a folder of the same files with three more splits."""

    path: Positional[Path]
    """the data set folder"""
    out: Path
    """the new folder; its files are links to those of the data set where the file system allows"""
    hold_out_clusters: int
    """clusters to hold out"""
    space: str
    """the cached feature space by which pictures are similar"""
    clusters: int | None = None
    """clusters to cut the pictures into; one for about ten test pictures otherwise"""
    name: str = "clusters"
    """what the splits' names begin with: NAME-train, NAME-control, NAME-test"""
    seed: int = 0
    """seed of the clusters and of which are held out"""

    def run(self) -> None:
        from fmri2img.launch.splitting import hold_out_clusters

        made = hold_out_clusters(
            self.path,
            self.out,
            hold_out=self.hold_out_clusters,
            clusters=self.clusters,
            space=self.space,
            name=self.name,
            seed=self.seed,
        )
        for name, pictures in made.items():
            output().print(f"{name}: {pictures} pictures")
        first = next(iter(made))
        output().print(f"Data set in {self.out}; next: fmri2img finetune or pretrain with --split {first}")


DataAction = (
    Annotated[DataBuild, subcommand("build")]
    | Annotated[DataVerify, subcommand("verify")]
    | Annotated[DataInfo, subcommand("info")]
    | Annotated[DataSplit, subcommand("split")]
    | Annotated[DataFetch, subcommand("fetch")]
)


@dataclass(frozen=True)
class Data:
    """Get data in, check them, look at them."""

    action: OmitSubcommandPrefixes[OmitArgPrefixes[DataAction]]

    def run(self) -> None:
        self.action.run()
