"""A small simulation that the tests of this folder share."""

import pytest

from fmri2img.simulation import Simulation, SimulationSpec


@pytest.fixture(scope="session")
def spec() -> SimulationSpec:
    return SimulationSpec(
        subjects={"subj01": 90, "subj02": 70}, sessions=4, trials_per_session=90, test_pictures=20
    )


@pytest.fixture(scope="session")
def simulation(spec: SimulationSpec) -> Simulation:
    return Simulation(spec)
