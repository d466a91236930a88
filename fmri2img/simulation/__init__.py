"""The embedded default data: rendered scenes, and a simulated visual cortex that sees them."""

from fmri2img.simulation.source import Simulation, SimulationSpec

__all__ = ["Simulation", "SimulationSpec"]
