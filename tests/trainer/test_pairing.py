"""Heads fitted to the latents that other subjects had at the same trials."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from fmri2img.checkpoints_schema import TRIALS_NAME, load_tensors, resolve, verify
from fmri2img.datasets import Dataset
from fmri2img.errors import InputError
from fmri2img.models.loading import load_decoder
from fmri2img.trainer.pairing import paired_targets, read_trials
from fmri2img.trainer.stages import StageSpec, finetune, pretrain

Specs = Callable[..., StageSpec]


def test_a_target_is_the_mean_of_all_who_saw_the_picture_at_that_place_of_the_experiment() -> None:
    kept = {
        "subj01.latent": torch.tensor([[1.0, 2.0], [3.0, 4.0]]),
        "subj01.place": torch.tensor([[7, 1, 1], [8, 1, 2]]),
        "subj02.latent": torch.tensor([[5.0, 0.0], [9.0, 9.0]]),
        "subj02.place": torch.tensor([[7, 1, 1], [8, 2, 2]]),  # the second in another session
    }
    targets, count = paired_targets(kept, np.array([[8, 1, 2], [7, 1, 1], [7, 1, 2]]))
    assert count.tolist() == [1, 2, 0]
    assert targets.tolist() == [[3.0, 4.0], [3.0, 1.0], [0.0, 0.0]]


def test_trials_stand_at_the_places_that_the_data_set_says(spec: Specs) -> None:
    dataset = Dataset.open(spec("none").data)
    samples = dataset.samples("subj01", "train")
    trials = read_trials(dataset, samples, ["pixels-2"], [2])
    for row in (0, 5, len(trials.places) - 1):
        nsd_id, session, number = trials.places[row].tolist()
        sample = samples.nsd_id.tolist().index(nsd_id)
        records = dataset.trials(samples, sample)
        repeat = records.index({"session": session, "trial": number})
        assert session == 2
        stored = dataset.responses(samples, sample)[repeat].astype(np.float32)
        assert np.array_equal(trials.rows.responses[row], stored)


def test_a_paired_head_reproduces_the_latents_of_the_same_trials(spec: Specs) -> None:
    parent = pretrain(spec("whole", ("subj01", "subj02"), steps=2, trial_latents=True, validation=0.0))
    assert verify(parent) == []
    kept = load_tensors(parent, TRIALS_NAME)
    assert kept["subj01.latent"].shape == (len(kept["subj01.place"]), 6)
    child = finetune(spec("child", parent=parent, steps=0, head="paired", validation=0.0))
    decoder = load_decoder(child)
    trials = read_trials(
        dataset := Dataset.open(spec("none").data), dataset.samples("subj01", "train"), ["pixels-2"], None
    )
    latent = decoder.predict({"subj01": torch.from_numpy(trials.rows.responses)}).latent
    targets, count = paired_targets(kept, trials.places)
    assert (count >= 1).all()
    alone = [row for row, n in enumerate(count) if n == 1]
    found = np.corrcoef(latent.numpy()[alone].ravel(), targets[alone].ravel())[0, 1]
    assert found > 0.9


def test_a_parent_that_kept_no_trials_is_refused_with_the_way_out(spec: Specs) -> None:
    parent = pretrain(spec("plain", ("subj02",), steps=1))
    assert TRIALS_NAME not in resolve(parent).manifest.files
    with pytest.raises(InputError, match=r"pretraining\.trial_latents: true, or use head: posterior"):
        finetune(spec("child", parent=parent, steps=1, head="paired"))


def test_people_without_a_trial_in_common_cannot_be_paired(spec: Specs) -> None:
    parent = pretrain(spec("whole", ("subj02",), steps=1, trial_latents=True))
    kept = load_tensors(parent, TRIALS_NAME)
    places = kept["subj02.place"].numpy() + np.array([0, 100, 0])
    assert not paired_targets(kept, places)[1].any()
