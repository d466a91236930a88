"""Published results beside our own, and whether the two may be compared at all."""

from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict

from fmri2img.evaluation.protocols import ProtocolName

Split = Literal["nsd-shared1000", "nsd-shared982"]
_NSD = ("natural scenes dataset", "pscotti/", "prepare_nsddata", "neuropictor")
_PICTURES: Mapping[int, Split] = {1000: "nsd-shared1000", 982: "nsd-shared982"}


class PublishedResult(BaseModel):
    """One row of a published table; shares are shares here, whatever they were printed as."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: str
    split: Split
    subjects: tuple[str, ...]
    sessions: int
    protocol: ProtocolName
    evidence: Literal["paper", "cited", "reproduction", "unchecked"]
    source: str
    encoding: str | None = None
    note: str = ""
    headline: bool = False
    values: dict[str, float]


class Beside(PublishedResult):
    """A published row beside a result of ours: `comparable`, and where it is not, every reason why."""

    comparable: bool
    why: str = ""


class Measured(BaseModel):
    """What a result of ours was measured on.

    Attributes:
        data: the data set's name.
        split: which of NSD's test sets the judged pictures are, if they are one.
        pictures: how many distinct pictures were judged.
        protocol: whose way of measuring.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: str
    split: Split | None
    pictures: int
    subject: str
    protocol: ProtocolName | None


def split_of(release: str, pictures: int) -> Split | None:
    """Which of NSD's test sets that many pictures of a data set are, by what it says of its release."""
    if not any(name in release.lower() for name in _NSD):
        return None
    return _PICTURES.get(pictures)


@cache
def published_results() -> tuple[PublishedResult, ...]:
    """The table that comes with fmri2img, in its order."""
    told = yaml.safe_load((files("fmri2img.evaluation") / "published.yaml").read_text(encoding="utf-8"))
    rows = []
    for row in told["results"]:
        values = {k: v / 100 if k in told["percent"] else float(v) for k, v in row["values"].items()}
        notes = [row.get("note", "")]
        notes += [told["retrieval_note"]] if "image_retrieval" in values else []
        notes += [told["brain_note"]] if row.get("encoding") else []
        note = "; ".join(filter(None, notes))
        rows.append(
            PublishedResult.model_validate(
                {"subjects": told["averages"]} | row | {"values": values, "note": note}
            )
        )
    return tuple(rows)


def beside(measured: Measured, metrics: list[str]) -> list[Beside]:
    """Published rows that have one of our metrics, those of the same split and protocol first.

    A retrieval metric of ours ends in its feature space, which the published name leaves out.
    """
    kinds = {
        name if name.startswith("brain_correlation") else "_".join(name.split("_")[:2]) for name in metrics
    }
    rows = []
    for row in published_results():
        if kinds.isdisjoint(row.values):
            continue
        reasons = _reasons(row, measured)
        rows.append(Beside(**row.model_dump(), comparable=not reasons, why="; ".join(reasons)))
    return sorted(
        rows,
        key=lambda row: (not row.comparable, row.split != measured.split, row.protocol != measured.protocol),
    )


def _reasons(row: PublishedResult, measured: Measured) -> list[str]:
    reasons = []
    if measured.split is None:
        reasons.append(
            f"it is of {row.split}, this of {measured.pictures} pictures of {measured.data}, which is not that split"
        )
    elif measured.split != row.split:
        reasons.append(f"it is of {row.split}, this of {measured.split}")
    if row.protocol != measured.protocol:
        ours = f"with --protocol {measured.protocol}" if measured.protocol else "without a protocol"
        reasons.append(f"it is measured as {row.protocol}, this {ours}")
    if row.subjects != (measured.subject,):
        reasons.append(f"it is the mean over {', '.join(row.subjects)}, this is of {measured.subject}")
    if row.encoding is not None:
        reasons.append(f"its encoding model is {row.encoding}, this one ridge regression")
    if row.evidence == "unchecked":
        reasons.append("the figures were not read again in their source")
    return reasons
