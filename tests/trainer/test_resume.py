"""A run that was killed and started again ends where a run that was never killed ends, to the last bit."""

import copy
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from fmri2img import checkpoints_schema as schema
from fmri2img.config import load_recipe
from fmri2img.errors import InputError
from fmri2img.trainer.stages import finetune, pretrain
from fmri2img.trainer.state import _decisive
from fmri2img.trainer.watch import read_records

BYTES = ["model.safetensors", "state/optimiser.safetensors"]


def same_end(one: Path, other: Path) -> None:
    """Weights, moments and metrics of two final checkpoints are equal to the last bit."""
    assert one.name == other.name
    for name in BYTES:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    assert schema.read_manifest(one).metrics == schema.read_manifest(other).metrics


def story(run: Path) -> list[dict[str, Any]]:
    """The records of a run without what depends on the clock."""
    volatile = ("time", "speed/", "memory/")
    return [{k: v for k, v in record.items() if not k.startswith(volatile)} for record in read_records(run)]


@pytest.mark.parametrize("step", [1, 2, 5, 8])
def test_finetuning_killed_at_any_step_and_resumed_equals_never_killed(
    spec: Callable[..., Any], faults: Any, killed: type[BaseException], step: int
) -> None:
    whole = finetune(spec("whole"))
    with pytest.raises(killed):
        finetune(spec("broken"), listener=faults.kill_at(step))
    same_end(finetune(spec("broken")), whole)
    assert story(Path(spec("broken").run)) == story(Path(spec("whole").run))


def test_every_step_stands_once_in_the_metrics_after_two_kills(
    spec: Callable[..., Any], faults: Any, killed: type[BaseException]
) -> None:
    for step in (4, 7):
        with pytest.raises(killed):
            finetune(spec("run"), listener=faults.kill_at(step))
    finetune(spec("run"))
    records = read_records(Path(spec("run").run))
    assert [r["step"] for r in records if "train/loss" in r] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert [r["step"] for r in records if "validation/loss" in r] == [0, 3, 6, 8]


def test_the_best_weights_before_a_kill_are_still_the_best_after_it(
    spec: Callable[..., Any], faults: Any, killed: type[BaseException]
) -> None:
    # A rate so high that validation only gets worse: the best step is 0, long before the kill.
    rough = {"select": "best", "learning_rate": 0.5, "schedule": "constant", "validate_every": 1}
    whole = finetune(spec("whole", **rough))
    assert schema.read_manifest(whole).metrics["validation/best_step"] == 0
    with pytest.raises(killed):
        finetune(spec("broken", **rough), listener=faults.kill_at(7))
    same_end(finetune(spec("broken", **rough)), whole)


def test_pretraining_killed_and_resumed_equals_never_killed(
    spec: Callable[..., Any], faults: Any, killed: type[BaseException]
) -> None:
    subjects = ("subj01", "subj02")
    whole = pretrain(spec("whole", subjects))
    with pytest.raises(killed):
        pretrain(spec("broken", subjects), listener=faults.kill_at(5))
    same_end(pretrain(spec("broken", subjects)), whole)


def test_averaged_weights_go_on_from_where_they_were(
    spec: Callable[..., Any], faults: Any, killed: type[BaseException]
) -> None:
    averaged = {"ema": 0.8, "select": "ema"}
    whole = finetune(spec("whole", **averaged))
    with pytest.raises(killed):
        finetune(spec("broken", **averaged), listener=faults.kill_at(5))
    broken = finetune(spec("broken", **averaged))
    same_end(broken, whole)
    assert (broken / "ema.safetensors").read_bytes() == (whole / "ema.safetensors").read_bytes()
    model, average, last = (
        schema.load_tensors(whole, name)
        for name in ("model.safetensors", "ema.safetensors", "state/model.safetensors")
    )
    assert all((model[name] == average[name]).all() for name in average)
    assert any((model[name] != last[name]).any() for name in last)


def test_a_finished_run_is_not_trained_again(spec: Callable[..., Any]) -> None:
    done = finetune(spec("run", steps=2))
    before = (done / "manifest.json").read_bytes()

    def nothing(record: Any) -> None:
        raise AssertionError("trained again")

    assert finetune(spec("run", steps=2), listener=nothing) == done
    assert (done / "manifest.json").read_bytes() == before


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"learning_rate": 0.5}, "recipe.finetuning.learning_rate was 0.01, is 0.5"),
        ({"steps": 9}, "recipe.finetuning.steps was 2, is 9"),
    ],
)
def test_a_run_folder_of_another_configuration_is_refused_with_the_key(
    spec: Callable[..., Any], change: dict[str, Any], told: str
) -> None:
    finetune(spec("run", steps=2))
    wanted = spec("run", steps=2)
    wanted.recipe["finetuning"].update(change)
    with pytest.raises(InputError, match=told):
        finetune(wanted)


def test_a_run_folder_of_another_subject_is_refused(spec: Callable[..., Any]) -> None:
    finetune(spec("run", steps=2))
    with pytest.raises(InputError, match="subjects was"):
        finetune(spec("run", ("subj02",), steps=2))


def test_a_run_that_began_from_another_parent_is_refused(spec: Callable[..., Any]) -> None:
    one = pretrain(spec("one", ("subj01", "subj02"), steps=2))
    other = pretrain(spec("other", ("subj01", "subj02"), steps=3))
    finetune(spec("run", ("subj03",), parent=one, steps=2))
    for parent in (other, None):
        with pytest.raises(InputError, match="began from one/step-00000002"):
            finetune(spec("run", ("subj03",), parent=parent, steps=2))


@pytest.mark.parametrize("change", [{"decoder": {"latent": 5}}, {"losses": {"mse": {}}}])
def test_a_recipe_of_another_shape_than_the_parents_is_refused(
    spec: Callable[..., Any], change: dict[str, Any]
) -> None:
    parent = pretrain(spec("one", ("subj01", "subj02"), steps=2))
    wanted = spec("run", ("subj03",), parent=parent, steps=2)
    if "decoder" in change:
        wanted.recipe["decoder"] = change["decoder"]
    else:
        for space in wanted.recipe["spaces"].values():
            space.update(change)
    with pytest.raises(InputError, match="as they were in pretraining"):
        finetune(wanted)


def test_a_damaged_newest_checkpoint_is_passed_over_and_the_end_is_the_same(
    spec: Callable[..., Any], faults: Any, killed: type[BaseException]
) -> None:
    whole = finetune(spec("whole"))
    with pytest.raises(killed):
        finetune(spec("broken"), listener=faults.kill_at(7))
    newest = Path(spec("broken").run, "checkpoints", "step-00000006", "state", "optimiser.safetensors")
    newest.write_bytes(newest.read_bytes()[:-1])
    same_end(finetune(spec("broken")), whole)


def test_what_a_killed_run_left_half_written_is_removed(spec: Callable[..., Any]) -> None:
    torn = Path(spec("run").run, "checkpoints", ".step-00000002.tmp-abc")
    torn.mkdir(parents=True)
    (torn / "model.safetensors").write_bytes(b"half")
    finetune(spec("run", steps=2))
    assert not torn.exists()


def test_only_the_newest_checkpoints_stay(spec: Callable[..., Any]) -> None:
    final = finetune(spec("run", keep=2))
    assert sorted(path.name for path in final.parent.iterdir()) == ["step-00000006", "step-00000008"]


def test_a_moved_run_folder_resumes(
    spec: Callable[..., Any], faults: Any, killed: type[BaseException], tmp_path: Path
) -> None:
    whole = finetune(spec("whole"))
    with pytest.raises(killed):
        finetune(spec("broken"), listener=faults.kill_at(5))
    shutil.move(tmp_path / "broken", tmp_path / "moved")
    same_end(finetune(spec("moved")), whole)


def test_the_position_of_a_checkpoint_is_plain(spec: Callable[..., Any]) -> None:
    final = finetune(spec("run", steps=4, keep=2, select="best"))
    positions: Sequence[dict[str, Any]] = [
        json.loads((final.parent / f"step-0000000{n}" / "state" / "position.json").read_text())
        for n in (2, 4)
    ]
    assert [position["step"] for position in positions] == [2, 4]
    assert positions[0]["best"]["step"] == 0


def test_a_run_resumes_with_other_settings_that_decide_no_weight(
    spec: Callable[..., Any], faults: Any, killed: type[BaseException]
) -> None:
    whole = finetune(spec("whole"))
    with pytest.raises(killed):
        finetune(spec("broken"), listener=faults.kill_at(5))
    other = {"log_every": 2, "keep": 5, "checkpoint_every": 3, "reading_threads": 2}
    resumed = finetune(spec("broken", **other))
    assert (resumed / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_a_recipe_stored_before_a_setting_existed_is_the_recipe_with_its_default() -> None:
    now: dict[str, Any] = {"recipe": load_recipe("default").model_dump(mode="json"), "subjects": ["subj01"]}
    old = copy.deepcopy(now)
    for stage in ("pretraining", "finetuning"):
        del old["recipe"][stage]["freeze"]
    assert _decisive(old) == _decisive(now)
    old["recipe"]["finetuning"]["weight_decay"] = 0.123
    assert _decisive(old) != _decisive(now)
