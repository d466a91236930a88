"""`fmri2img simulation`: the simulation's own models."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import OmitArgPrefixes, OmitSubcommandPrefixes, Positional, subcommand

from fmri2img.console import output


def _beside(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.work")


@dataclass(frozen=True)
class SimulationTrain:
    """Train the models that make the simulation's pictures, from its own scenes; stopped, the same command goes on."""

    out: Path
    """the folder of the trained models; those that are there stay as they are"""
    work: Path | None = None
    """where pictures and unfinished trainings are kept; OUT.work beside it otherwise"""
    seed: int = 0
    """seed of scenes, first weights and training"""
    size: Literal["full", "short", "tiny"] = "full"
    """short trains a third as long; tiny only shows that every part runs"""
    only: tuple[str, ...] = ()
    """of clip, vae, unclip, sd, controlnet; all otherwise"""
    device: str = "cpu"
    """where to train: cpu, or cuda"""

    def run(self) -> None:
        from fmri2img.simulation.modelling.training import train_models

        work = self.work or _beside(self.out)
        train_models(self.out, work, seed=self.seed, size=self.size, only=self.only, device=self.device)
        output().print(f"Models in {self.out}; pictures and states of training in {work}")


@dataclass(frozen=True)
class SimulationJudge:
    """Measure trained models on pictures they have not seen, and write their card and a sheet of samples."""

    models: Positional[Path]
    """the folder of the trained models"""
    work: Path | None = None
    """where pictures are kept and the sheet goes; MODELS.work beside it otherwise"""

    def run(self) -> None:
        from fmri2img.simulation.modelling.training import judge_models

        work = self.work or _beside(self.models)
        judge_models(self.models, work)
        output().print(f"Card in {self.models / 'README.md'}; samples in {work / 'samples.png'}")


@dataclass(frozen=True)
class SimulationModels:
    """Train the simulation's own small models, and judge them."""

    action: OmitSubcommandPrefixes[
        OmitArgPrefixes[
            Annotated[SimulationTrain, subcommand("train")] | Annotated[SimulationJudge, subcommand("judge")]
        ]
    ]

    def run(self) -> None:
        self.action.run()
