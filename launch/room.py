"""With how many workers a run goes on: as many as it wants, or as its cluster has room for and its recipe admits."""

from contextlib import suppress

from fmri2img.console import output
from fmri2img.errors import InputError, StoppedError
from fmri2img.launch.cluster import Place
from fmri2img.launch.events import Story
from fmri2img.launch.slots import count_slots, probe_nodes, wait_for_slots
from fmri2img.trainer.config import Recipe
from fmri2img.trainer.loop import check_layout
from fmri2img.trainer.stages import StageSpec


class MoreRoom(Exception):
    """A run that had shrunk has been stopped, because its cluster has room for `workers` now."""

    def __init__(self, workers: int) -> None:
        super().__init__(f"there is room for {workers} workers")
        self.workers = workers


def admissible(spec: StageSpec, most: int) -> int:
    """The largest number of workers up to `most` that the run can have; 0 when there is none."""
    training = Recipe.model_validate(spec.recipe).pretraining
    for workers in range(most, 0, -1):
        with suppress(InputError):
            check_layout(training, spec.subjects, world=workers)
            return workers
    return 0


def check_range(spec: StageSpec, place: Place) -> None:
    """Raise InputError unless the run can have all its workers, or, of a range, some number in it."""
    if place.least is None or admissible(spec, place.workers) < place.least:
        check_layout(Recipe.model_validate(spec.recipe).pretraining, spec.subjects, world=place.workers)


def find_room(
    spec: StageSpec, place: Place, story: Story, *, interrupted: bool, wanted: int | None = None
) -> int:
    """Wait until all workers find a place; the number to begin with, which is lower where `place.least` allows it.

    Ray itself would wait for ever, or place workers on a node that is gone. Raises StoppedError for a run that was
    interrupted, InputError for one that has not begun.
    """
    if interrupted:
        probe_nodes()

    def tell(found: int) -> None:
        story.tell("waiting", workers=found, wanted=place.workers, seconds=place.patience)
        output().print(f"  waiting for nodes: {found} of {place.workers} workers find a place", markup=False)

    wanted = admissible(spec, place.workers) if wanted is None else wanted
    found = wait_for_slots(wanted, place.patience, tell=tell)
    fewer = admissible(spec, min(found, wanted))
    if fewer == wanted:
        return wanted
    if place.least is not None and fewer >= place.least:
        story.tell("shrunk", workers=fewer, wanted=place.workers)
        output().print(f"  going on with {fewer} of {place.workers} workers", markup=False)
        return fewer
    if interrupted:
        way = f", or the same command with --workers {fewer} goes on with what is left" if fewer else ""
        raise StoppedError(
            f"nodes were lost, and {found} of {place.workers} workers find a place: start nodes again and run the same "
            f"command{way}"
        )
    busy = count_slots(free=False)
    why = f"the cluster has places for {busy}" + (f", of which {found} are free" if busy > found else "")
    way = f" or use --workers {fewer}" if fewer else ""
    raise InputError(f"--workers {place.workers}: {why} after {place.patience:g} s: start more nodes{way}")


def more_room(spec: StageSpec, place: Place, workers: int) -> int:
    """The number of workers that the run could have beside nobody else's, when that is more than it has; else 0."""
    if workers >= place.workers:
        return 0
    try:
        free = count_slots()
    except Exception:  # the cluster's head does not answer: whoever waits for the workers will be told
        return 0
    could = admissible(spec, min(place.workers, workers + free))
    return could if could > workers else 0
