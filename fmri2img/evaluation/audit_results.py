"""What the audit gives: controls, clusters, dimensions, near-duplicates, regions and findings, as JSON."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from fmri2img.errors import DamageError, InputError
from fmri2img.evaluation.intervals import Estimate
from fmri2img.evaluation.results import Measure
from fmri2img.files import write_json


class Plain(BaseModel):
    """Frozen, and no key that this version does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Control(Plain):
    """What is scored in the decoder's place by the same metrics, and how far the decoder is above it.

    `differences` are decoder minus control, paired by item, at the level of the scores; `strict` the same for the
    metrics that identify, at a level that all of them together keep.
    """

    label: str
    description: str
    metrics: dict[str, Measure]
    differences: dict[str, Estimate]
    strict: dict[str, Estimate]


class ByCluster(Plain):
    """A metric within clusters of similar pictures and across them.

    Metrics that identify (`own` is None): among wrong candidates of the same cluster, and of others; `strict` is
    `within` at a level that all of them together keep. Other metrics: `own` with the picture seen, `within` and
    `across` with another picture of its cluster, or of another cluster, in its place.
    """

    label: str
    own: Estimate | None
    within: Estimate | None
    across: Estimate | None
    strict: Estimate | None = None


class DimensionsKept(Plain):
    """Effective dimensions (participation ratios) of predicted and true features, and their ratio's interval."""

    predicted: float
    true: float
    ratio: float
    low: float
    high: float


class NearTraining(Plain):
    """How close to training pictures the test pictures are (`duplicates`), and what was made of them (`copies`).

    Both are shares of items whose nearest training picture is at least as similar as the threshold says.
    """

    duplicates: Estimate
    threshold: float
    median: float
    copies: Estimate
    copy_threshold: float


class Region(Plain):
    """Identification from one region's voxels alone and without them, others being 0, their mean; `drop` is paired."""

    name: str
    voxels: int
    alone: Estimate
    without: Estimate
    drop: Estimate


class Finding(Plain):
    """One decision: `found` when the decoder's scores are not worth what they seem, with the figures in a sentence."""

    name: Literal["responses", "look-up", "clusters", "dimensions", "near-duplicates"]
    found: bool
    sentence: str


class Audit(Plain):
    """The whole of `audit.json`. `manifest` is the SHA-256 of the reconstruction's, so that a stale audit is known."""

    schema_version: Literal[1] = 1
    subject: str
    manifest: str
    items: int
    pictures: bool
    training_pictures: int
    space: str
    clusters: int
    controls: dict[str, Control]
    by_cluster: dict[str, ByCluster]
    dimensions: dict[str, DimensionsKept]
    near_training: dict[str, NearTraining]
    regions: list[Region] = []
    findings: list[Finding]

    def write(self, path: Path) -> None:
        """Write as JSON, whole or not at all."""
        write_json(path, self.model_dump(mode="json"))

    @classmethod
    def read(cls, path: Path) -> "Audit":
        """Read what `write` wrote. InputError: no such file. DamageError: not an audit."""
        if not path.is_file():
            raise InputError(
                f"no audit at {path}: run `fmri2img evaluate --audit` first or give another path."
            )
        try:
            return cls.model_validate_json(path.read_bytes())
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "the whole file"
            raise DamageError(f"{path} is not an audit: {where}: {first['msg']}. Audit again.") from error
