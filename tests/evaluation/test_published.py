"""Published results: the table is sound, and nothing is called comparable that is not."""

import pytest

from fmri2img.evaluation.protocols import PROTOCOLS, protocol
from fmri2img.evaluation.published import Beside, Measured, beside, published_results, split_of

OURS = Measured(data="nsd", split="nsd-shared1000", pictures=1000, subject="subj01", protocol="mindeye2")


def find(rows: list[Beside], method: str, **wanted: object) -> Beside:
    (row,) = [r for r in rows if r.method == method and all(getattr(r, k) == v for k, v in wanted.items())]
    return row


def test_every_value_is_of_a_known_metric_in_its_range_and_has_a_source() -> None:
    shares = {"alexnet2", "alexnet5", "inception", "clip", "image_retrieval", "brain_retrieval"}
    for row in published_results():
        known = {m for name in PROTOCOLS for m in protocol(name).order()} | shares
        names = {name for name in row.values if not name.startswith("brain_correlation_")}
        assert names <= known, row.method
        assert all(
            0.5 <= row.values[name] <= 1 for name in names & (shares - {"image_retrieval", "brain_retrieval"})
        )
        assert all(0 < value <= 1 for value in row.values.values())
        assert row.source and row.sessions in (0, 1, 37, 40)
    keys = [(r.method, r.split, r.subjects, r.sessions, r.encoding) for r in published_results()]
    assert len(set(keys)) == len(keys)


def test_the_mean_over_subjects_is_the_mean_of_the_subjects() -> None:
    """A slip of the pen in either table would show."""
    rows = [r for r in published_results() if r.method == "MindEye2" and r.encoding is None]
    for sessions in (40, 1):
        chosen = [r for r in rows if r.sessions == sessions]
        (mean,) = [r for r in chosen if len(r.subjects) == 4]
        alone = [r for r in chosen if len(r.subjects) == 1]
        assert len(alone) == 4
        for metric, value in mean.values.items():
            assert value == pytest.approx(sum(r.values[metric] for r in alone) / 4, abs=0.0011), metric


def test_the_same_split_subject_and_protocol_are_comparable() -> None:
    rows = beside(OURS, ["pixcorr", "ssim"])
    row = find(rows, "MindEye2", subjects=("subj01",), sessions=40)
    assert row.comparable and row.why == ""
    assert rows[0].comparable and not rows[-1].comparable


def test_another_split_is_never_comparable_and_says_so() -> None:
    row = find(beside(OURS, ["pixcorr"]), "NeuroPictor")
    assert not row.comparable
    assert "it is of nsd-shared982, this of nsd-shared1000" in row.why
    assert "it is measured as neuropictor, this with --protocol mindeye2" in row.why


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (
            {"split": None, "pictures": 40, "data": "simulated"},
            "this of 40 pictures of simulated, which is not",
        ),
        ({"protocol": None}, "this without a protocol"),
        ({"subject": "subj03"}, "it is the mean over subj01, subj02, subj05, subj07, this is of subj03"),
    ],
)
def test_every_other_difference_is_named(change: dict[str, object], why: str) -> None:
    rows = beside(OURS.model_copy(update=change), ["clip"])
    assert rows and not any(row.comparable for row in rows)
    assert why in find(rows, "MindEye2", subjects=("subj01", "subj02", "subj05", "subj07"), sessions=40).why


def test_another_encoding_model_and_figures_nobody_read_again_are_not_comparable() -> None:
    brain = beside(OURS, ["brain_correlation_V1"])
    assert brain and all("its encoding model is gnet" in row.why for row in brain)
    unread = find(beside(OURS, ["pixcorr"]), "Brain-IT", sessions=40)
    assert "not read again" in unread.why


def test_retrieval_stands_beside_retrieval_in_any_space_with_its_caution() -> None:
    rows = beside(OURS, ["image_retrieval_raw_openclip"])
    assert find(rows, "MindEye2", subjects=("subj01",), sessions=1).note.startswith(
        "MindEye2's code transposes"
    )
    assert beside(OURS, ["two_way_pixels"]) == []


def test_a_split_is_known_by_the_release_and_its_number_of_pictures() -> None:
    assert split_of("Natural Scenes Dataset, naturalscenesdataset.org", 1000) == "nsd-shared1000"
    assert split_of("huggingface.co/datasets/pscotti/naturalscenesdataset, x", 982) == "nsd-shared982"
    assert split_of("Natural Scenes Dataset", 515) is None
    assert split_of("fmri2img simulation, seed 0", 1000) is None
