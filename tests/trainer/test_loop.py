"""A stage stops for what cannot work, and says what and where; nothing half-written stays."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fmri2img import checkpoints_schema as schema
from fmri2img.datasets import Dataset
from fmri2img.errors import Fmri2imgError, InputError, StoppedError
from fmri2img.models.closed_form import fit_head
from fmri2img.models.linear import RidgeDecoder
from fmri2img.models.loading import load_decoder
from fmri2img.trainer import loop, stages, validation
from fmri2img.trainer.batches import Batch, BatchLoader
from fmri2img.trainer.config import Recipe, TrainingConfig
from fmri2img.trainer.loop import check_layout
from fmri2img.trainer.objectives import LossTerms, decoder_loss
from fmri2img.trainer.stages import finetune, fit_ridge_baseline, pretrain
from fmri2img.trainer.validation import TimeShare
from fmri2img.trainer.watch import Watch, read_records

Spec = Callable[..., Any]
PAIR = ("subj01", "subj02")


def nothing_half_written(run: Path, steps: list[int]) -> None:
    """Only whole checkpoints of these steps are in a run folder."""
    folder = run / schema.CHECKPOINTS_FOLDER
    names = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
    assert names == [schema.step_name(step) for step in steps]
    for name in names:
        assert schema.verify(folder / name) == []


def test_a_response_that_is_no_number_stops_the_run_with_step_and_term(
    spec: Spec, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = BatchLoader.read

    def damaged(self: BatchLoader, step: int) -> Batch:
        batch = read(self, step)
        if step == 5:
            batch.responses["subj01"][0, 0] = math.nan
        return batch

    monkeypatch.setattr(BatchLoader, "read", damaged)
    with pytest.raises(
        Fmri2imgError, match=r"step 5: the loss pixels-2/mse is nan, from responses of subj01"
    ) as caught:
        finetune(spec("run"))
    assert "\n" not in str(caught.value)
    nothing_half_written(Path(spec("run").run), [2, 4])


def test_features_and_predictions_that_are_no_numbers_are_named_too(
    spec: Spec, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = BatchLoader.read

    def damaged(self: BatchLoader, step: int) -> Batch:
        batch = read(self, step)
        batch.features["words"][0] = math.inf
        return batch

    with monkeypatch.context() as patch:
        patch.setattr(BatchLoader, "read", damaged)
        with pytest.raises(Fmri2imgError, match=r"words/mse is (nan|inf), from features of words"):
            finetune(spec("features"))

    def huge(self: BatchLoader, step: int) -> Batch:
        batch = read(self, step)
        values = batch.responses["subj02"].float()
        batch.responses["subj02"] = values / values.abs().max() * 3e38
        return batch

    monkeypatch.setattr(BatchLoader, "read", huge)
    with pytest.raises(Fmri2imgError, match=r"is (nan|inf), from predictions of subj02 that are not"):
        pretrain(spec("predictions", PAIR))


def test_a_run_stopped_by_a_bad_batch_goes_on_when_the_data_are_good(
    spec: Spec, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = finetune(spec("whole"))
    with monkeypatch.context() as patch:
        good = BatchLoader.read

        def damaged(self: BatchLoader, step: int) -> Batch:
            batch = good(self, step)
            batch.responses["subj01"] *= math.nan if step == 6 else 1
            return batch

        patch.setattr(BatchLoader, "read", damaged)
        with pytest.raises(Fmri2imgError, match="step 6"):
            finetune(spec("run"))
    again = finetune(spec("run"))
    assert (again / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_a_gradient_that_is_no_number_stops_the_run(spec: Spec, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = decoder_loss

    def overflowing(*arguments: Any, **options: Any) -> LossTerms:
        loss = honest(*arguments, **options)
        return LossTerms(loss.backward * math.inf, loss.terms, loss.weights)

    monkeypatch.setattr(loop, "decoder_loss", overflowing)
    with pytest.raises(Fmri2imgError, match=r"step 0: the gradient norm is (nan|inf)"):
        finetune(spec("run"))
    nothing_half_written(Path(spec("run").run), [])


def test_a_validation_loss_that_is_no_number_stops_the_run(
    spec: Spec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(validation, "judge", lambda *arguments, **named: [("mse", math.nan, 1.0)])
    with pytest.raises(Fmri2imgError, match="step 0: validation/pixels-2/mse is nan"):
        finetune(spec("run"))


def test_a_failure_while_saving_leaves_nothing_half_written(
    spec: Spec, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(schema, "model_card", full)
    with pytest.raises(StoppedError, match="No space left on device"):
        finetune(spec("run"))
    nothing_half_written(Path(spec("run").run), [])


@pytest.mark.parametrize(
    ("world", "batch", "told"),
    [
        (3, 96, r"8 lanes cannot feed 3 workers: .* Use one of \[1, 2, 4, 8\]"),
        (2, 100, r"global_batch 100 cannot hold 2 subjects on 8 lanes .* multiple of 16\. Use 96 or 112"),
        (2, 5, r"must be a multiple of 16\. Use 16 or 32"),
    ],
)
def test_a_layout_that_does_not_divide_is_refused_with_what_would(world: int, batch: int, told: str) -> None:
    with pytest.raises(InputError, match=told):
        check_layout(TrainingConfig(lanes=8, global_batch=batch), PAIR, world)


def test_a_layout_that_divides_is_taken() -> None:
    for world in (1, 2, 4, 8):
        check_layout(TrainingConfig(lanes=8, global_batch=96), PAIR, world)


def test_finetuning_only_the_head_leaves_everything_shared_as_it_is(spec: Spec) -> None:
    parent = pretrain(spec("parent", PAIR, steps=2))
    child = finetune(spec("child", ("subj03",), parent=parent, trainable="head"))
    before, after = (schema.load_tensors(path) for path in (parent, child))
    shared = {name for name in before if not name.startswith("heads.")}
    assert {name for name in after if name.startswith("heads.")} == {
        "heads.subj03.bias",
        "heads.subj03.weight",
    }
    assert all(torch.equal(before[name], after[name]) for name in shared)
    manifest = schema.read_manifest(child)
    assert list(manifest.subjects) == ["subj03"]
    assert manifest.parent is not None and manifest.parent.path == "parent/step-00000002"


def test_a_new_head_starts_from_the_closed_form(spec: Spec) -> None:
    parent = pretrain(spec("parent", PAIR, steps=2))
    wanted = spec("child", ("subj03",), parent=parent, steps=0)
    child = load_decoder(finetune(wanted))
    truth = load_decoder(parent)
    recipe = Recipe.model_validate(wanted.recipe)
    material = stages.open_material(wanted, recipe, recipe.finetuning)
    assert not isinstance(truth, RidgeDecoder)
    truth.with_subjects(material.voxels)
    rows = stages._rows(material, recipe, wanted, recipe.finetuning)["subj03"]
    fit_head(truth, "subj03", rows, seed=0)
    assert torch.equal(child.state_dict()["heads.subj03.weight"], truth.state_dict()["heads.subj03.weight"])


def test_pretraining_leaves_an_alignment_for_the_next_subject(spec: Spec) -> None:
    tensors = schema.load_tensors(pretrain(spec("parent", PAIR, steps=2)))
    assert float(tensors["alignment.weight"].abs().sum()) > 0


def test_training_brings_the_loss_down(spec: Spec) -> None:
    finetune(spec("run", steps=40, start="random", validation=0.0, noise=0.0))
    losses = [
        record["train/loss"] for record in read_records(Path(spec("run").run)) if "train/loss" in record
    ]
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])


def test_the_ridge_baseline_predicts_in_the_units_of_the_features(spec: Spec, data: Path) -> None:
    decoder = load_decoder(fit_ridge_baseline(spec("ridge")))
    dataset = Dataset.open(data)
    samples = dataset.samples("subj01", "test")
    responses = torch.from_numpy(
        np.stack([dataset.responses(samples, i).astype(np.float32).mean(0) for i in range(len(samples))])
    )
    predicted = decoder.predict({"subj01": responses}).features["pixels-2"].numpy()
    truth = dataset.read_features(samples, np.arange(len(samples)), "pixels-2")
    assert abs(predicted.mean() - truth.mean()) < 0.1


def test_only_a_pretrained_decoder_can_be_finetuned(spec: Spec) -> None:
    ridge = fit_ridge_baseline(spec("ridge"))
    with pytest.raises(InputError, match="only a pretrained decoder can be finetuned"):
        finetune(spec("run", parent=ridge))


def test_an_unknown_subject_is_refused_with_those_there_are(spec: Spec) -> None:
    with pytest.raises(InputError, match="has no subj09: its subjects are subj01, subj02, subj03"):
        finetune(spec("run", ("subj09",)))


def test_features_that_are_missing_or_made_otherwise_are_refused(spec: Spec) -> None:
    absent = spec("run")
    absent.recipe["spaces"]["deep"] = {"extractor": {"kind": "pixels", "size": 3}}
    with pytest.raises(InputError, match="has no features deep: run `fmri2img features"):
        finetune(absent)
    other = spec("run")
    other.recipe["spaces"]["words"]["extractor"]["size"] = 9
    with pytest.raises(InputError, match="has features words made by"):
        finetune(other)


def test_a_watch_drops_the_lines_after_its_first_step(tmp_path: Path) -> None:
    def records(first: int, steps: range) -> list[int]:
        watch = Watch(tmp_path, first_step=first, total=9, config={})
        for step in steps:
            watch.record(step, {"train/loss": 1.0})
        watch.close()
        return [record["step"] for record in read_records(tmp_path)]

    assert records(0, range(1, 6)) == [1, 2, 3, 4, 5]
    assert records(3, range(4, 5)) == [1, 2, 3, 4]
    assert records(0, range(1, 3)) == [1, 2]


def test_a_line_that_a_kill_cut_short_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2, "tr')
    assert read_records(tmp_path) == [{"step": 1}]
    Watch(tmp_path, first_step=1, total=9, config={}).close()
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1}\n'


def test_the_listener_is_told_what_is_written(spec: Spec) -> None:
    told: list[dict[str, Any]] = []
    finetune(spec("run", steps=2), listener=told.append)
    assert told == read_records(Path(spec("run").run))
    assert {"train/loss", "train/gradient_norm", "train/learning_rate", "speed/samples_per_second"} <= set(
        told[1]
    )


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # what wandb warns of is its own affair
def test_wandb_offline_writes_a_run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    watch = Watch(tmp_path, first_step=0, total=2, config={"recipe": {"name": "tiny"}}, wandb=True)
    watch.record(1, {"train/loss": 1.0})
    watch.close()
    identity = (tmp_path / "wandb-id").read_text()
    assert [path.name for path in (tmp_path / "wandb").glob(f"offline-run-*-{identity}")] != []
    assert json.loads((tmp_path / "metrics.jsonl").read_text())["train/loss"] == 1.0


class Clock:
    """Time that passes when told."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_validations_stay_within_their_share_of_the_time() -> None:
    clock = Clock()
    share = TimeShare(0.1, clock)
    taken = []
    for step in range(1000):
        if share.allows():
            with share.counted():
                clock.now += 3.0
            taken.append(step)
        clock.now += 1.0
    assert 3.0 * len(taken) == pytest.approx(0.1 * clock.now, rel=0.05)


def test_a_share_of_all_time_allows_everything_without_a_clock() -> None:
    share = TimeShare(1.0, Clock())
    assert all(share.allows() for _ in range(3))


def test_a_small_share_leaves_out_validations_but_the_first_and_the_last(
    spec: Spec, monkeypatch: pytest.MonkeyPatch
) -> None:
    def steps(run: str, **changes: Any) -> list[int]:
        final = finetune(spec(run, steps=8, validate_every=1, **changes))
        assert (final / "model.safetensors").read_bytes() == whole
        return [r["step"] for r in read_records(Path(spec(run).run)) if "validation/loss" in r]

    whole = (finetune(spec("whole", steps=8, validate_every=1)) / "model.safetensors").read_bytes()
    monkeypatch.setattr(TimeShare, "allows", lambda self: self.share >= 1)
    assert steps("all") == list(range(9))
    assert steps("few", validate_share=1e-9) == [0, 8]


def test_validation_draws_no_random_number(spec: Spec, monkeypatch: pytest.MonkeyPatch) -> None:
    checked = []

    def watched(*arguments: Any, **named: Any) -> dict[str, float]:
        before = torch.get_rng_state()
        figures = validation.validate(*arguments, **named)
        checked.append(torch.equal(torch.get_rng_state(), before))
        return figures

    monkeypatch.setattr(loop, "validate", watched)
    finetune(spec("run", steps=4))
    assert checked and all(checked)


def test_a_validation_is_judged_by_the_losses_of_the_runs_end(spec: Spec) -> None:
    wanted = spec("run", steps=6, validate_every=2)
    wanted.recipe["spaces"]["words"]["losses"] = {
        "bimixco": {"end": 0.5},
        "softclip": {"begin": 0.5, "weight": 0.5},
    }
    finetune(wanted)
    records = read_records(Path(wanted.run))
    terms = [
        {name for name in record if name.startswith("train/words/")}
        for record in records
        if "train/loss" in record
    ]
    assert terms == [{"train/words/bimixco"}] * 3 + [{"train/words/softclip"}] * 3
    judged = [record for record in records if "validation/loss" in record]
    assert len(judged) == 4
    for record in judged:
        total = record["validation/pixels-2/mse"] + 0.5 * record["validation/words/softclip"]
        assert record["validation/loss"] == pytest.approx(total)
        assert "validation/words/bimixco" not in record


def test_micro_batches_train_as_the_whole_batch_does(spec: Spec) -> None:
    """To rounding, with all rows contrasted and mixed; dropout would draw other masks."""
    ends, losses = [], []
    for parts in (1, 2, 4):
        wanted = spec(f"parts-{parts}", PAIR, steps=6, micro_batches=parts, learning_rate=1e-3)
        wanted.recipe["decoder"]["dropout"] = 0.0
        wanted.recipe["spaces"]["words"]["losses"] = {
            "bimixco": {"temperature": 0.1, "end": 0.5},
            "softclip": {"temperature": 0.1, "begin": 0.5},
        }
        ends.append(schema.load_tensors(pretrain(wanted)))
        losses.append([r["train/loss"] for r in read_records(Path(wanted.run)) if "train/loss" in r])
    for end, loss in zip(ends[1:], losses[1:], strict=True):
        assert loss == pytest.approx(losses[0], rel=1e-5)
        for name in end:
            if not name.startswith("alignment."):
                assert torch.allclose(end[name], ends[0][name], atol=1e-5), name


def test_micro_batches_that_do_not_divide_are_refused_with_those_that_do() -> None:
    with pytest.raises(InputError, match=r"micro_batches 5 .* the 24 rows .* Use one of \[1, 2, 3, 4, 6, 8"):
        check_layout(TrainingConfig(lanes=8, global_batch=96, micro_batches=5), PAIR, 2)
