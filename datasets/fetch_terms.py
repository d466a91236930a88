"""The terms of the Natural Scenes Dataset, and the record that this user has accepted them."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path

from fmri2img.errors import InputError
from fmri2img.files import write_json

ACCEPT = "FMRI2IMG_ACCEPT_NSD_TERMS"
VERSION = 1
"""Of the summary; a user who accepted another is asked again."""

ADDRESS = "https://cvnlab.slite.page/p/IB6BSeW_7o/Terms-and-Conditions"
AGREEMENT = "https://forms.gle/xue2bCdM9LaFNMeb7"

SUMMARY = f"""\
The Natural Scenes Dataset (NSD), and every set derived from it, comes with conditions. The official text counts:
  {ADDRESS}
and whoever uses the data first fills in the data access agreement:
  {AGREEMENT}
In short: the data are for research and teaching; they are not passed on, sold or made money with; nobody tries to
find out who the participants are; all in a group who use them keep to the same conditions, and to the rules of their
institution; what is published cites the NSD paper (Allen et al., Nature Neuroscience, 2022) and names its funding;
the data come without warranty. Pictures and captions are COCO's, under COCO's own terms."""


def record_path() -> Path:
    """Where the acceptance is kept, in the user's configuration folder."""
    folder = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(folder) / "fmri2img" / "nsd-terms.json"


def accepted() -> bool:
    """Whether this user has accepted the terms as they are summed up here."""
    try:
        record = json.loads(record_path().read_bytes())
    except (FileNotFoundError, ValueError):
        return False
    return isinstance(record, dict) and record.get("version") == VERSION and bool(record.get("accepted"))


def accept(how: str) -> Path:
    """Record that the user has accepted, now, and how (`flag`, `environment`, `terminal`)."""
    path = record_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    write_json(path, {"terms": ADDRESS, "version": VERSION, "accepted": now, "how": how})
    return path


def refused() -> InputError:
    """The sentence for data that may not be fetched yet."""
    return InputError(
        f"The NSD terms are not accepted yet: read {ADDRESS}, fill in {AGREEMENT}, then pass --accept-nsd-terms or "
        f"set {ACCEPT}=1 (once; it is recorded in {record_path()})."
    )
