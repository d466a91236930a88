"""`fmri2img plan`: what it says about a small data set, about a decoder of MindEye2's size, and about bad input."""

import json
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fmri2img.datasets import Dataset
from fmri2img.launch.plan_devices import KNOWN, planned_device
from fmri2img.launch.plan_memory import Memory
from fmri2img.launch.planning import target_spaces
from fmri2img.trainer.config import Recipe
from fmri2img.trainer.rehearsal import meta_decoder

Say = Callable[..., Any]

# Voxels of "nsdgeneral" (Allen et al. 2022) of subjects 2 to 8, and the decoder of Scotti et al. 2024 at our layout.
VOXELS = dict(
    zip([f"subj0{n}" for n in range(2, 9)], (14278, 15226, 13153, 13039, 17907, 12682, 14386), strict=True)
)
MINDEYE2 = {
    "name": "mindeye2-size",
    "spaces": {
        "clip": {
            "extractor": {"kind": "pixels", "size": 16},
            "losses": {"mse": {}, "softclip": {}, "prior": {}},
            "prior": {"depth": 6, "heads": 32, "head_width": 52},
        }
    },
    "decoder": {"latent": 4096, "hidden": 4096, "blocks": 4},
    "pretraining": {"global_batch": 56, "lanes": 8, "zero_stage": 2},
    "generator": {"kind": "pixels", "space": "clip", "size": 64},
}


def mindeye2(device: str, **changes: Any) -> Memory:
    told = {**MINDEYE2, "pretraining": {**MINDEYE2["pretraining"], **changes}}  # type: ignore[dict-item]
    recipe, planned = Recipe.model_validate(told), planned_device(device, None)
    decoder = meta_decoder(recipe, VOXELS, target_spaces(recipe, {"clip": (256, 1664)}))
    return Memory(recipe, decoder, recipe.pretraining, planned.kind, limit=planned.memory, data=0)


def test_a_decoder_of_billions_of_parameters_is_planned_in_seconds_without_its_memory() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begun = time.process_time()
    memory = mindeye2("h200")
    chosen = memory.setting(8)
    assert time.process_time() - begun < 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500e3  # kilobytes
    voxels, features = sum(VOXELS.values()), 256 * 1664
    assert memory.counts.parts["heads"] == (voxels + 7) * 4096
    assert memory.counts.parts["branches"] == pytest.approx(3 * 4097 * features, rel=0.01)
    assert chosen.items["moments"] == pytest.approx(8 * memory.counts.parameters / 8)
    assert chosen.fits


def test_what_does_not_fit_is_told_with_changes_that_do() -> None:
    memory = mindeye2("a100-80", global_batch=448)
    chosen = memory.setting(8)
    assert chosen.fits is False
    found = memory.nearest(8)
    assert found
    for near in found:
        assert near.fits
        assert near.told(chosen).startswith(("--set pretraining.", "--workers "))
        keys = ("zero_stage", "offload", "micro_batches", "precision", "global_batch")
        again = memory.setting(near.workers, **{key: getattr(near, key) for key in keys})
        assert again.device_peak == near.device_peak <= 0.92 * 80e9


def test_more_memory_never_fits_less() -> None:
    memory = mindeye2("h200")
    peaks = [setting.device_peak for setting in memory.stages(8)]
    assert peaks[0] == max(peaks)  # everything whole on every rank
    assert peaks[-1] == min(peaks)  # everything divided, and away
    assert memory.setting(8).device_peak < memory.setting(2).device_peak
    whole, parts = (memory.setting(2, zero_stage=3, micro_batches=n).device_peak for n in (1, 2))
    assert parts < whole  # at stage 2 gradients kept between them may take more than they spare


@pytest.fixture(scope="module")
def own(world: Any, flags: list[str]) -> list[str]:
    """Flags of the world's own pretraining."""
    return ["--data", str(world.data), "--subjects", "subj02", "subj03", *flags]


@pytest.fixture(scope="module")
def plan(own: list[str], said: Say) -> Callable[..., dict[str, Any]]:
    """`plan(words)`: what the command says as JSON."""

    def run(*words: str) -> dict[str, Any]:
        told = said("plan", "default", *own, "--json", *words)
        assert told.code == 0, told.err
        plain: dict[str, Any] = json.loads(told.out)
        return plain

    return run


def test_a_plan_says_what_training_will_do(plan: Callable[..., dict[str, Any]], world: Any) -> None:
    found = plan("--workers", "2", "--workers-per-node", "1")
    assert found["nodes"] == 2 and found["subjects"] == {"subj02": 34, "subj03": 36}
    assert found["layout"]["world_sizes"] == [1, 2, 4] and found["layout"]["rows"] == 4
    assert found["parameters"]["heads"] == (34 + 36 + 2) * 8
    dataset = Dataset.open(world.data)
    shards = [shard for shard in dataset.manifest.shards if shard.partition == "train"]
    mine = [shard for shard in shards if shard.subject in found["subjects"]]
    columns = ("responses", "pixels-16", "caption-128")
    every = sum(
        shard.columns[name].bytes + shard.columns[name].index.bytes for shard in mine for name in columns
    )
    read = found["reading"]
    # Two nodes read every shard once, but for those at the border of two lanes.
    assert len(mine) <= sum(read["shards"]) <= len(mine) + 2
    assert every <= sum(read["bytes_read"]) <= 1.3 * every and read["cache"] is None
    assert found["times"]["step"] is None and "--measure" in found["times"]["source"]
    assert found["checkpoint"]["count"] == 6


def test_the_size_of_a_checkpoint_is_that_of_the_files(
    plan: Callable[..., dict[str, Any]], world: Any
) -> None:
    found = plan()["checkpoint"]["size"]
    folder = sorted((world.pretrained / "checkpoints").glob("step-*"))[0]
    written = sum(path.stat().st_size for path in folder.rglob("*.safetensors"))
    assert found == pytest.approx(written, rel=0.05)


@pytest.mark.slow
def test_measuring_gives_seconds_of_a_step_of_an_epoch_and_of_pictures(
    plan: Callable[..., dict[str, Any]],
) -> None:
    found = plan("--workers", "2", "--measure")
    times, pictures = found["times"], found["reconstruction"]
    assert 0 < times["step"] < 10
    assert times["epoch"] == pytest.approx(times["step"] * times["steps_per_epoch"])
    assert times["source"].startswith("measured on this processor")
    assert pictures["items"] == 20
    assert pictures["seconds"] == pytest.approx(pictures["seconds_each"] * 10)


def test_a_gpu_is_planned_from_its_published_peak(plan: Callable[..., dict[str, Any]]) -> None:
    words = ("--device", "h200", "--set", "pretraining.precision=bfloat16")
    times = plan(*words)["times"]
    assert 0 < times["at_peak"] < times["step"]
    assert plan(*words[:2])["times"]["at_peak"] > times["at_peak"]  # float32 is slower
    assert plan(*words)["times"]["wire"] == 0
    assert plan(*words, "--workers", "4")["times"]["wire"] > 0


def test_the_table_has_every_stage_and_marks_the_recipes_own(own: list[str], said: Say) -> None:
    told = said("plan", "default", *own, "--device", "h200")
    assert told.code == 0, told.err
    for word in ("2 (recipe)", "3 + offload", "lanes", "fits", "reconstruction"):
        assert word in told.out, told.out


def test_what_does_not_fit_ends_with_1_and_says_what_would(own: list[str], said: Say) -> None:
    told = said("plan", "default", *own, "--device", "h200", "--gpus-memory", "3")
    assert told.code == 1
    assert "does not fit" in told.line and "--set pretraining.zero_stage=3" in told.line
    both = ("--set", "pretraining.zero_stage=0", "--set", "pretraining.precision=bfloat16")
    refused = said("plan", "default", *own, *both)
    assert refused.code == 1 and "stage 0 cannot train in bfloat16" in refused.line


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("nothing",), "there is no recipe 'nothing'"),
        (("default", "--device", "abacus"), "--device abacus is not known: use one of b200, h200"),
        (("default", "--gpus-memory", "0"), "--gpus-memory 0: give the gigabytes"),
        (("default", "--workers", "3"), "4 lanes cannot feed 3 workers"),
        (("default", "--workers", "0"), "both must be at least 1"),
        (("default", "--subjects", "subj09"), "has no subj09"),
        (("default", "--measure", "--device", "h200"), "--measure times this machine"),
        (("default", "--set", "spaces.pixels-16.extractor.size=8"), "has features pixels-16 made by"),
    ],
)
def test_bad_input_is_one_sentence(words: tuple[str, ...], says: str, world: Any, said: Say) -> None:
    told = said("plan", *words, "--data", world.data)
    assert told.code == 2
    assert says in told.line


def test_a_data_set_without_the_recipes_features_is_refused(world: Any, said: Say, tmp_path: Path) -> None:
    recipe = tmp_path / "other.yaml"
    text = said("pretrain", "--data", "-", "--out", "-", "--print-config").out
    recipe.write_text(text.replace("caption-128", "caption-other"))
    told = said("plan", recipe, "--data", world.data)
    assert told.code == 2
    assert "has no features caption-other: run `fmri2img features" in told.line


def test_every_device_has_memory_and_a_peak() -> None:
    for name in KNOWN:
        device = planned_device(name, None)
        if device.kind == "gpu":
            assert device.memory and device.bandwidth and device.peak("float16"), name
    assert planned_device("a100-80", 40).memory == 40e9
    assert planned_device("cpu", None).memory is None
