"""docs/features.md says what is so: every kind, and the table of models."""

from pathlib import Path
from typing import get_args

import yaml

from fmri2img.config import load_recipe
from fmri2img.features.extractors import AnyExtractor
from fmri2img.hub import FEATURES

PAGE = (Path(__file__).parents[2] / "docs" / "features.md").read_text()


def test_the_table_of_models_is_that_of_the_code() -> None:
    for model in FEATURES:
        files = ", ".join(f"`{file}`" for file in model.files)
        assert f"| `{model.name}` | {model.kinds} | {files} | {model.licence} | {model.note} |" in PAGE


def test_every_kind_is_told_of() -> None:
    for kind in get_args(get_args(AnyExtractor)[0]):
        assert f"\n| `{kind.model_fields['kind'].default}` |" in PAGE


def test_the_example_is_a_recipe(tmp_path: Path) -> None:
    spaces = yaml.safe_load(PAGE.split("```yaml\n")[1].split("```")[0])
    told = {"name": "page", "generator": {"kind": "pixels", "space": "pixels-16", "size": 64}} | spaces
    (tmp_path / "page.yaml").write_text(yaml.safe_dump(told))
    assert load_recipe(str(tmp_path / "page.yaml")).spaces.keys() == spaces["spaces"].keys()
