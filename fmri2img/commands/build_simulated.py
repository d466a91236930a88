"""`fmri2img data build simulated`."""

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from fmri2img.commands.building import build


@dataclass(frozen=True)
class BuildSimulated:
    """Simulate subjects who look at rendered scenes, and write them as a data set."""

    out: Positional[Path]
    """the folder to make"""
    seed: int = 0
    """seed of scenes, brains, designs and noise"""
    sessions: int = 8
    """sessions of each subject"""
    trials: int = 240
    """trials of each session"""
    test_pictures: int = 120
    """pictures that every subject sees, three times each, never to be trained on"""

    def run(self) -> None:
        from fmri2img.simulation import Simulation, SimulationSpec

        spec = SimulationSpec(
            seed=self.seed,
            sessions=self.sessions,
            trials_per_session=self.trials,
            test_pictures=self.test_pictures,
        )
        build(Simulation(spec), self.out)
