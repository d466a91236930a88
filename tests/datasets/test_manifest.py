"""The manifest's models are the source of the committed JSON Schema, and its seals cover what they say."""

from __future__ import annotations

import json
from importlib.resources import files

from fmri2img.datasets import Dataset
from fmri2img.datasets.manifest import json_schema, seal


def test_the_committed_schema_is_that_of_the_models() -> None:
    committed = json.loads((files("fmri2img.datasets") / "schema" / "dataset.v1.json").read_text())
    assert committed == json_schema(), "export it again: see `fmri2img.datasets.manifest.json_schema`"


def test_the_fingerprint_is_of_the_data_and_not_of_words_about_them(tiny: Dataset) -> None:
    plain = tiny.manifest.model_dump()
    renamed = seal(plain | {"name": "other", "terms": "others", "provenance": {}})
    assert renamed.fingerprint == tiny.fingerprint
    assert renamed.digest != tiny.manifest.digest
    plain["shards"][0]["columns"]["responses"]["sha256"] = "0" * 64
    assert seal(plain).fingerprint != tiny.fingerprint


def test_a_named_split_is_a_part_of_a_partition(tiny: Dataset) -> None:
    plain = tiny.manifest.model_dump()
    plain["splits"]["few"] = {"partition": "test", "nsd_ids": [0, 2, 77]}
    few = Dataset(tiny.path, seal(plain)).samples("subj01", "few")
    assert few.nsd_id.tolist() == [0, 2]
