"""The simulation as a source of trials."""

import re
from typing import Any

import numpy as np
import pytest

from fmri2img.datasets.source import SubjectSource, TrialSource
from fmri2img.errors import InputError
from fmri2img.simulation import Simulation, SimulationSpec
from fmri2img.simulation.reference import reference
from fmri2img.simulation.source import draw_design


def test_it_is_a_trial_source(simulation: Simulation) -> None:
    assert isinstance(simulation, TrialSource)
    assert isinstance(simulation.subjects["subj01"], SubjectSource)


def test_equal_specs_give_equal_bytes(simulation: Simulation, spec: SimulationSpec) -> None:
    reference.cache_clear()
    again = Simulation(spec.model_copy())
    for subject, source in simulation.subjects.items():
        one, other = source.session(2), again.subjects[subject].session(2)
        assert one.responses.tobytes() == other.responses.tobytes()
        assert one.nsd_ids.tobytes() == other.nsd_ids.tobytes()


def test_another_seed_gives_other_brains_and_other_designs(
    simulation: Simulation, spec: SimulationSpec
) -> None:
    other = Simulation(spec.model_copy(update={"seed": 1}))
    one, two = simulation.subjects["subj01"], other.subjects["subj01"]
    assert not np.array_equal(one.design, two.design)
    assert not np.array_equal(one.voxel_table()["noise_ceiling"], two.voxel_table()["noise_ceiling"])
    assert not np.array_equal(simulation.picture(3), other.picture(3))


def test_a_session_made_alone_equals_the_session_made_in_order(
    simulation: Simulation, spec: SimulationSpec
) -> None:
    in_order = [simulation.subjects["subj02"].session(session) for session in (1, 2, 3)]
    alone = Simulation(spec).subjects["subj02"].session(3)
    np.testing.assert_array_equal(alone.responses, in_order[2].responses)
    assert alone.responses.dtype == np.float32
    assert alone.responses.shape == (90, 70)


def test_every_subject_sees_every_test_picture_three_times(simulation: Simulation) -> None:
    for name, subject in simulation.subjects.items():
        seen, repeats = np.unique(subject.design, return_counts=True)
        assert (repeats == 3).all()
        test = [nsd_id for nsd_id in seen.tolist() if simulation.is_test(name, nsd_id, 1)]
        assert test == simulation.test_ids.tolist()


def test_training_pictures_are_a_subjects_own(simulation: Simulation, spec: SimulationSpec) -> None:
    first, second = (set(subject.design.ravel().tolist()) for subject in simulation.subjects.values())
    assert first & second == set(simulation.test_ids.tolist())
    assert len(first | second) == simulation.pictures == 20 + 2 * spec.training_pictures


def test_most_pictures_of_a_first_session_are_seen_once_there() -> None:
    spec = SimulationSpec()
    design = draw_design(spec, np.arange(640), np.random.default_rng(0))
    _, times = np.unique(design[0], return_counts=True)
    assert 0.7 < (times == 1).mean() < 0.95


def test_drift_changes_gain_and_baseline_of_a_session_but_no_ceiling(spec: SimulationSpec) -> None:
    steady = Simulation(spec.model_copy(update={"drift": 0.0})).subjects["subj01"]
    drifting = Simulation(spec).subjects["subj01"]
    moved = drifting.session(1).responses.mean(axis=0) - steady.session(1).responses.mean(axis=0)
    assert (moved / steady.cortex.amplitude).std() == pytest.approx(0.4, abs=0.1)
    np.testing.assert_array_equal(steady.cortex.noise_ceiling, drifting.cortex.noise_ceiling)


def test_pictures_and_captions_are_asked_for_by_id(simulation: Simulation) -> None:
    nsd_id = int(simulation.test_ids[0])
    assert simulation.picture(nsd_id).shape == (64, 64, 3)
    assert len(simulation.captions(nsd_id)) == 5
    with pytest.raises(InputError, match=f"picture {simulation.pictures} was not simulated: ids run from 0"):
        simulation.picture(simulation.pictures)


def test_a_session_that_is_not_there_is_refused(simulation: Simulation) -> None:
    with pytest.raises(InputError, match="session 5 was not simulated: sessions run from 1 to 4"):
        simulation.subjects["subj01"].session(5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"sessions": 1, "trials_per_session": 100},
            "trials_per_session=100 times sessions=1 leaves a rest: the trials must divide by repeats=3. "
            "Use trials_per_session=99.",
        ),
        ({"sessions": 1, "test_pictures": 80}, "test_pictures=80 leaves no trial for training"),
        ({"subjects": {}}, "give at least one, such as"),
        ({"subjects": {"subj01": 8}}, "subj01=8 voxels is too few for its ROIs. Use 32 or more."),
        ({"subjects": {"subj.1": 80}}, "'subj.1': an id is letters, digits and '-', such as subj01."),
        ({"noise_scale": 0}, "noise_scale=0 is not valid: Input should be greater than 0"),
        ({"nosie_scale": 1}, "nosie_scale=1 is not valid"),
    ],
)
def test_a_spec_that_cannot_be_is_refused_with_value_rule_and_way_out(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        SimulationSpec(**settings)


def test_a_test_set_too_large_says_what_would_fit() -> None:
    with pytest.raises(InputError, match="Use at most 79"):
        SimulationSpec(sessions=1, test_pictures=80)
