"""Every command with its flags. Nothing heavy is imported before a command runs, so `--help` is quick."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import (
    CascadeSubcommandArgs,
    OmitArgPrefixes,
    OmitSubcommandPrefixes,
    Positional,
    UseAppendAction,
    arg,
    subcommand,
)

from fmri2img.commands.checkpoint import Checkpoint
from fmri2img.commands.data import Data
from fmri2img.commands.doctor import Doctor
from fmri2img.commands.evaluate import Evaluate
from fmri2img.commands.features_import import FeaturesImport
from fmri2img.commands.launch import Launch
from fmri2img.commands.plan import Plan
from fmri2img.commands.simulation import SimulationModels
from fmri2img.commands.status import Status
from fmri2img.console import output
from fmri2img.errors import InputError

if TYPE_CHECKING:
    from fmri2img.launch.cluster import Place

From = Annotated[Path, arg(name="from", metavar="RUN")]


@dataclass(frozen=True)
class RecipeFlags:
    """Which recipe, and what to change in it."""

    recipe: str = "default"
    """a shipped recipe's name, or the path of a .yaml file"""
    config: Path | None = None
    """a YAML file whose values go over the recipe's"""
    set: UseAppendAction[tuple[str, ...]] = ()
    """key.key=value, over everything else; may be given several times"""

    def load(self) -> Any:
        """The resolved recipe."""
        from fmri2img.config import load_recipe

        return load_recipe(self.recipe, config=self.config, values=self.set)


@dataclass(frozen=True)
class Features:
    """Compute a recipe's feature spaces once and cache them in the data set, or `features import` computed ones."""

    data: Positional[Path]
    """the data set folder"""
    flags: OmitArgPrefixes[RecipeFlags] = RecipeFlags()
    space: UseAppendAction[tuple[str, ...]] = ()
    """name of a feature space; may be given several times. All of the recipe's otherwise"""
    dtype: Literal["float16", "float32", "bfloat16"] | None = None
    """type to store; float16 for a model's large features, float32 otherwise; that of the files for import"""
    workers: int = 0
    """processes; 0 works in this one, without Ray"""
    devices: str = "auto"
    """auto, cpu, cuda, or GPUs of this machine by number, such as cuda:0,1; a worker has one"""
    batch: int = 64
    """pictures that a model sees at a time"""
    precision: Literal["float32", "float16", "bfloat16"] = "float32"
    """what models compute in"""
    emulate_nodes: int = 0
    """start that many Ray nodes on this machine"""
    cluster: str | None = None
    """address of a running Ray cluster, or auto; this machine otherwise"""
    skip_preflight: bool = False
    """start without looking at nodes first"""
    given: OmitSubcommandPrefixes[
        OmitArgPrefixes[
            Annotated[FeaturesImport, subcommand("import")] | Annotated[None, subcommand("compute")]
        ]
    ] = None

    def run(self) -> None:
        if self.given is not None:
            if self != Features(self.data, space=self.space, dtype=self.dtype, given=self.given):
                raise InputError(
                    "features import takes no recipe: leave --recipe, --config, --set and what says how to compute away"
                )
            return self.given.run(self.data, self.space, self.dtype)
        from fmri2img.launch.features import FeatureSettings, cache_features

        place = place_of(self.workers, self.emulate_nodes, self.cluster, skip_preflight=self.skip_preflight)
        settings = FeatureSettings(place, self.devices, self.batch, self.precision, self.dtype, self.space)
        cache_features(self.flags.load(), self.data, settings)


def _range(text: str) -> tuple[int | None, int]:
    """The fewest workers, where said, and the most: of `4` or `1:4`."""
    least, found, most = text.rpartition(":")
    if not most.isdigit() or (found and not least.isdigit()):
        raise InputError(f"--workers {text}: give a number, or the fewest and the most, as in 1:4")
    return int(least) if found else None, int(most)


@dataclass(frozen=True)
class Pretrain:
    """Pretrain one decoder on many subjects: Ray starts and watches the workers, DeepSpeed trains."""

    data: Path
    """the data set folder"""
    out: Path
    """the run folder; an unfinished run there goes on"""
    subjects: tuple[str, ...] = ()
    """subjects to train on; all of the data set's otherwise"""
    hold_out: tuple[str, ...] = ()
    """subjects to leave out"""
    workers: str | None = None
    """training processes, whose number must divide the recipe's lanes; 1:4 shrinks and grows with the cluster between
    the two. One a node otherwise"""
    emulate_nodes: int = 0
    """start that many Ray nodes on this machine"""
    cluster: str | None = None
    """address of a running Ray cluster, or auto; this machine otherwise"""
    wait_for_nodes: float = 60.0
    """seconds to wait for nodes that have not joined yet or were lost"""
    grace: float = 25.0
    """seconds for a last checkpoint when the job is told to stop (SIGTERM, Ctrl-C)"""
    hang_after: float = 1800.0
    """seconds without anything new from the workers after which they are killed and started again"""
    skip_preflight: bool = False
    """start without looking at nodes first: space, limits, and on a cluster equal versions and shared folders"""
    split: str = "train"
    """which training pictures: all, or a named split of them"""
    wandb: bool = False
    """log to Weights & Biases too, offline unless WANDB_MODE says otherwise"""
    print_config: bool = False
    """print the resolved recipe and stop"""
    flags: OmitArgPrefixes[RecipeFlags] = RecipeFlags()

    def run(self) -> None:
        from fmri2img.datasets import Dataset
        from fmri2img.launch import jobs
        from fmri2img.launch.cluster import Place

        recipe = self.flags.load()
        if self.print_config:
            return print_recipe(recipe)
        least, workers = _range(self.workers or str(max(1, self.emulate_nodes)))
        place = Place(
            workers,
            self.emulate_nodes,
            self.cluster,
            patience=self.wait_for_nodes,
            preflight=not self.skip_preflight,
            grace=self.grace,
            least=least,
            hang_after=self.hang_after,
        )
        subjects = jobs.chosen_subjects(Dataset.open(self.data), self.subjects, self.hold_out)
        path = jobs.pretraining(
            recipe, self.data, self.out, subjects=subjects, place=place, wandb=self.wandb, split=self.split
        )
        output().print(f"Checkpoint {path}")


@dataclass(frozen=True)
class Finetune:
    """Train one subject on one device with Accelerate, from a pretrained decoder or as a baseline."""

    data: Path
    """the data set folder"""
    subject: str
    """the subject"""
    out: Path
    """the run folder; an unfinished run there goes on"""
    from_: Annotated[Path | None, arg(name="from", metavar="RUN")] = None
    """the pretraining run to start from"""
    keep_heads: bool = False
    """keep the heads of the pretraining's subjects beside the new one; what they share must stay as it is"""
    baseline: Literal["scratch", "ridge"] | None = None
    """instead of --from: the same decoder without other subjects, or ridge regression"""
    sessions: int | None = None
    """use sessions 1 to this one; all otherwise"""
    skip_preflight: bool = False
    """start without looking at this machine first: space, limits"""
    split: str = "train"
    """which training pictures: all, or a named split of them"""
    wandb: bool = False
    """log to Weights & Biases too, offline unless WANDB_MODE says otherwise"""
    print_config: bool = False
    """print the resolved recipe and stop"""
    flags: OmitArgPrefixes[RecipeFlags] = RecipeFlags()

    def run(self) -> None:
        from fmri2img.launch import jobs

        if (self.from_ is None) == (self.baseline is None):
            raise InputError("give either --from RUN, a pretraining run, or --baseline scratch or ridge")
        if self.keep_heads and self.from_ is None:
            raise InputError("--keep-heads keeps the heads of a pretraining run: give --from RUN")
        recipe = self.flags.load()
        if self.print_config:
            return print_recipe(recipe)
        start: Any = self.from_ if self.from_ is not None else self.baseline
        path = jobs.finetuning(
            recipe,
            self.data,
            self.out,
            subject=self.subject,
            sessions=self.sessions,
            start=start,
            keep_heads=self.keep_heads,
            wandb=self.wandb,
            look_first=not self.skip_preflight,
            split=self.split,
        )
        output().print(f"Checkpoint {path}")


@dataclass(frozen=True)
class Reconstruct:
    """Reconstruct the pictures of a split, in batches, on as many workers as there are."""

    from_: From
    """the run to reconstruct with"""
    data: Path
    """the data set folder"""
    out: Path
    """the folder of the reconstruction; an unfinished one there goes on"""
    subjects: tuple[str, ...] = ()
    """subjects; all that the run has heads for otherwise"""
    split: str = "test"
    """which pictures"""
    repeats: Literal["average", "single"] = "average"
    """one picture from all repeats of a sample, or one from each"""
    samples: int = 1
    """pictures made of each item"""
    batch: int = 16
    """items of a unit of work"""
    seed: int = 0
    """seed of the generator"""
    generator: Path | None = None
    """a YAML file with another generator than the recipe's"""
    set: UseAppendAction[tuple[str, ...]] = ()
    """key=value of the generator, such as guidance=3; may be given several times"""
    workers: int = 1
    """processes; 0 works in this one, without Ray"""
    emulate_nodes: int = 0
    """start that many Ray nodes on this machine"""
    cluster: str | None = None
    """address of a running Ray cluster, or auto; this machine otherwise"""
    devices: str = "auto"
    """auto, cpu, cuda, or GPUs of this machine such as cuda:0,1; one GPU a worker"""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """what the generator computes in"""
    output: Literal["folder", "tar"] = "folder"
    """pictures as PNG files, or as WebDataset tars"""
    threads: int = 1
    """threads of a worker that write pictures beside the one that computes; 0 overlaps nothing"""
    resume: bool = True
    """go on with an unfinished reconstruction"""
    verify: bool = False
    """read every byte that is there again, and make again what changed"""
    skip_preflight: bool = False
    """start without looking at nodes first"""

    def run(self) -> None:
        from fmri2img.launch import jobs

        path = jobs.reconstruction(
            self.from_,
            self.data,
            self.out,
            place=place_of(
                self.workers, self.emulate_nodes, self.cluster, skip_preflight=self.skip_preflight
            ),
            subjects=self.subjects,
            split=self.split,
            repeats=self.repeats,
            samples=self.samples,
            batch=self.batch,
            seed=self.seed,
            generator=self.generator,
            changes=self.set,
            devices=self.devices,
            dtype=self.dtype,
            output=self.output,
            threads=self.threads,
            resume=self.resume,
            verify=self.verify,
        )
        output().print(f"Pictures in {path.parent}; next: fmri2img evaluate {path.parent}")


@dataclass(frozen=True)
class Report:
    """One HTML file that opens offline: pictures seen beside pictures reconstructed, curves and scores."""

    made: Positional[tuple[Path, ...]]
    """folders of evaluated reconstructions of the same pictures, the main one first"""
    data: Path | None = None
    """the data set folder; where the reconstruction was made from otherwise"""
    out: Path | None = None
    """the HTML file; report.html beside the first folder otherwise"""
    title: str = "Reconstruction report"
    """its title"""

    def run(self) -> None:
        from fmri2img.launch import jobs
        from fmri2img.launch.reporting import write_run_report

        if not self.made:
            raise InputError("give the folder of at least one evaluated reconstruction")
        names = [path.name for path in self.made]
        if len(set(names)) < len(names):
            names = [str(path) for path in self.made]
        out = self.out or self.made[0].parent / "report.html"
        data = jobs.source_of(self.made[0], self.data)
        write_run_report(out, dict(zip(names, self.made, strict=True)), data, title=self.title)
        output().print(f"Report {out}")


@dataclass(frozen=True)
class Demo:
    """See it all work: simulate, pretrain on two emulated nodes, finetune a new subject, reconstruct, judge, report."""

    out: Path = Path("runs/demo")
    """the folder to work in; an unfinished demo there goes on"""
    seed: int = 0
    """seed of the simulation and of training"""
    size: Literal["full", "small"] = "full"
    """small only shows that every part runs: its decoders are too little trained to judge"""

    def run(self) -> None:
        from fmri2img.launch.demo import run_demo

        run_demo(self.out, seed=self.seed, size=self.size)


Command = OmitSubcommandPrefixes[
    Annotated[Data, subcommand("data")]
    | Annotated[CascadeSubcommandArgs[Features], subcommand("features")]
    | Annotated[Pretrain, subcommand("pretrain")]
    | Annotated[Finetune, subcommand("finetune")]
    | Annotated[Reconstruct, subcommand("reconstruct")]
    | Annotated[Evaluate, subcommand("evaluate")]
    | Annotated[Report, subcommand("report")]
    | Annotated[Checkpoint, subcommand("checkpoint")]
    | Annotated[Launch, subcommand("launch")]
    | Annotated[Doctor, subcommand("doctor")]
    | Annotated[Plan, subcommand("plan")]
    | Annotated[Status, subcommand("status")]
    | Annotated[SimulationModels, subcommand("simulation")]
    | Annotated[Demo, subcommand("demo")]
]


def place_of(
    workers: int, emulate_nodes: int, cluster: str | None, *, skip_preflight: bool = False
) -> "Place | None":
    """Where a job runs whose workers need not talk to each other; None is this process, without Ray."""
    from fmri2img.launch.cluster import Place

    if workers < 0:
        raise InputError(f"--workers {workers}: use 0 to work in this process, or a number of workers")
    if workers or emulate_nodes:
        return Place(max(workers, emulate_nodes), emulate_nodes, cluster, preflight=not skip_preflight)
    if cluster:
        raise InputError(f"--cluster {cluster}: say with --workers how many of its workers to use")
    return None


def print_recipe(recipe: Any) -> None:
    """Print a resolved recipe as YAML."""
    import yaml

    output().print(yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False).rstrip(), markup=False)
