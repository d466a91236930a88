"""`fmri2img plan`: what a pretraining job needs of memory, disk and time, before it is started."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, UseAppendAction, arg


@dataclass(frozen=True)
class Plan:
    """Plan a pretraining job, starting nothing: memory by ZeRO stage, numbers of workers, data a node, time."""

    recipe: Annotated[Positional[str], arg(metavar="RECIPE")]
    """a shipped recipe's name, or the path of a .yaml file"""
    data: Path
    """the data set folder, with the recipe's feature spaces"""
    subjects: tuple[str, ...] = ()
    """subjects to train on; all of the data set's otherwise"""
    hold_out: tuple[str, ...] = ()
    """subjects to leave out"""
    workers: int = 1
    """training processes, a device each"""
    workers_per_node: int = 8
    """how many of them share a node"""
    device: str = "cpu"
    """a device such as h200, h100, a100-80 or cpu"""
    gpus_memory: float | None = None
    """gigabytes of one device, or of one worker on a CPU; the published figure otherwise"""
    measure: bool = False
    """time a few real steps of one rank, and a few pictures, in this process"""
    json: bool = False
    """print JSON"""
    config: Path | None = None
    """a YAML file whose values go over the recipe's"""
    set: UseAppendAction[tuple[str, ...]] = ()
    """key.key=value, over everything else; may be given several times"""

    def run(self) -> None:
        from fmri2img.config import load_recipe
        from fmri2img.datasets import Dataset
        from fmri2img.errors import Fmri2imgError
        from fmri2img.launch.jobs import chosen_subjects
        from fmri2img.launch.plan_devices import planned_device
        from fmri2img.launch.plan_memory import KEPT_FREE, say_bytes
        from fmri2img.launch.plan_table import show_plan
        from fmri2img.launch.planning import Where, make_plan

        recipe = load_recipe(self.recipe, config=self.config, values=self.set)
        where = Where(planned_device(self.device, self.gpus_memory), self.workers, self.workers_per_node)
        subjects = chosen_subjects(Dataset.open(self.data), self.subjects, self.hold_out)
        plan = make_plan(recipe, self.data, subjects, where, measure=self.measure)
        if self.json:
            print(plan.model_dump_json(indent=2))
        else:
            show_plan(plan)
        if plan.chosen.fits is False:
            what = plan.chosen.refused or (
                f"a rank needs {say_bytes(plan.chosen.device_peak)}, and {plan.device} has "
                f"{say_bytes(plan.device_memory or 0)}, of which {KEPT_FREE:.0%} of a GPU's are kept free"
            )
            way = (
                "; or ".join(plan.nearest)
                or "no stage, offload, batch or number of workers: make the decoder smaller, or use larger devices"
            )
            raise Fmri2imgError(f"this does not fit: {what}. What would: {way}")
