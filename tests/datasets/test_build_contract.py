"""What a source may offer beside responses and pictures is stored, checked and kept out of the statistics."""

from __future__ import annotations

import io
import json
import tarfile
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import webdataset
from PIL import Image

from fmri2img.datasets import Dataset, NamedSplit, SessionTrials, build_dataset, verify
from fmri2img.datasets.manifest import MANIFEST, schema_path, seal
from fmri2img.datasets.plan import trials_of
from fmri2img.datasets.writer import write_column
from fmri2img.errors import InputError


def offering(make_source: Any, **more: Any) -> Any:
    """A source whose subjects' sessions also have these fields, by functions of (session, trials)."""
    source = make_source()
    for person in source.subjects.values():
        plain = person.session

        def session(number: int, plain: Any = plain) -> SessionTrials:
            trials = plain(number)
            return replace(trials, **{name: make(number, trials) for name, make in more.items()})

        person.session = session
    return source


def with_splits(source: Any, splits: dict[str, NamedSplit]) -> Any:
    """The source as one of a class that names these splits."""
    source.__class__ = type("WithSplits", (type(source),), {"splits": splits})
    return source


def odd_numbers(session: int, trials: SessionTrials) -> np.ndarray:
    return np.arange(12) * 2 + 5


def behaviour(session: int, trials: SessionTrials) -> dict[str, np.ndarray]:
    speed = np.linspace(0.25, 3, 12)
    speed[4] = np.nan
    return {"rt": speed} | ({"is_old": np.arange(12) % 2 == 0} if session > 1 else {})


def windows(session: int, trials: SessionTrials) -> np.ndarray:
    rng = np.random.default_rng(session)
    return np.stack(
        [trials.responses * step + rng.normal(size=trials.responses.shape) for step in (1, 2, 3)], 1
    )


def all_trials(dataset: Dataset, subject: str) -> list[tuple[int, dict[str, Any]]]:
    found = []
    for partition in ("train", "test"):
        samples = dataset.samples(subject, partition)
        for i in range(len(samples)):
            found += [(int(samples.nsd_id[i]), trial) for trial in dataset.trials(samples, i)]
    return found


def test_trials_carry_their_numbers_and_behaviour(tmp_path: Path, make_source: Any) -> None:
    source = offering(make_source, numbers=odd_numbers, behaviour=behaviour)
    dataset = build_dataset(source, tmp_path / "set", samples_per_shard=4)
    assert dataset.manifest.subjects["subj01"].behaviour == ["is_old", "rt"]
    for nsd_id, trial in all_trials(dataset, "subj02"):
        given = source.subjects["subj02"].session(trial["session"])
        place = given.numbers.tolist().index(trial["trial"])
        assert given.nsd_ids[place] == nsd_id
        assert trial["rt"] is None if place == 4 else trial["rt"] == given.behaviour["rt"][place]
        assert trial["is_old"] == (None if trial["session"] == 1 else int(place % 2 == 0))
    assert verify(dataset.path) == []


def test_single_precision_behaviour_is_stored_with_the_digits_it_has(
    tmp_path: Path, make_source: Any
) -> None:
    speed = np.array([0.84, 1e-7, 3, np.nan] * 3, np.float32)
    source = offering(make_source, behaviour=lambda *_: {"rt": speed})
    dataset = build_dataset(source, tmp_path / "set")
    assert {trial["rt"] for _, trial in all_trials(dataset, "subj01")} == {0.84, 1e-7, 3, None}


def test_windows_are_z_scored_by_voxel_over_trials_and_time(tmp_path: Path, make_source: Any) -> None:
    source = offering(make_source, responses=windows)
    dataset = build_dataset(source, tmp_path / "set", samples_per_shard=4)
    assert dataset.manifest.subjects["subj01"].window == 3
    assert verify(dataset.path) == []
    given = {s: source.subjects["subj01"].session(s) for s in (1, 2, 3)}
    for partition in ("train", "test"):
        samples = dataset.samples("subj01", partition)
        for i in range(len(samples)):
            expected = []
            for trial in dataset.trials(samples, i):
                session = given[trial["session"]]
                basis = session.responses[session.nsd_ids >= 3].astype(np.float32).reshape(-1, 5)
                z = (session.responses - basis.mean(0)) / basis.std(0)
                expected.append(z[trial["trial"] - 1])
            assert dataset.responses(samples, i).shape == (len(expected), 3, 5)
            np.testing.assert_allclose(dataset.responses(samples, i), expected, rtol=2e-3, atol=2e-3)
    samples = dataset.samples("subj01", "train")
    read = dataset.read_trials(samples, [1, 0], [0, 1])
    assert read.shape == (2, 3, 5)
    assert (read[1] == dataset.responses(samples, 0)[1]).all()


def test_windows_of_two_lengths_are_refused(tmp_path: Path, make_source: Any) -> None:
    source = offering(make_source, responses=lambda s, t: windows(s, t)[:, : 2 if s == 2 else 3])
    with pytest.raises(
        InputError, match=r"subj01, session 2: responses are \(2, 5\), but those of the sessions"
    ):
        build_dataset(source, tmp_path / "set")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("numbers", np.arange(12)[::-1] + 1, "trial numbers must ascend from 1"),
        ("numbers", np.arange(12), "trial numbers must ascend from 1"),
        ("numbers", np.arange(11), r"trial numbers are int64 \(11,\), not integers \(12,\)"),
        ("behaviour", {"session": np.zeros(12)}, "'session' cannot name a behavioural value"),
        ("behaviour", {"time.s": np.zeros(12)}, r"'time\.s' cannot name a behavioural value"),
        ("behaviour", {"rt": np.zeros(3)}, r"rt is float64 \(3,\), and must be numbers \(12,\)"),
        (
            "behaviour",
            {"rt": np.full(12, np.inf)},
            "rt holds an infinite value: give NaN where there is none",
        ),
        ("responses", np.zeros((12, 5), complex), "responses are complex128, and must be numbers"),
        ("responses", np.zeros((12, 0, 5)), r"responses are \(12, 0, 5\)"),
    ],
)
def test_what_a_session_may_not_hold_is_refused(
    tmp_path: Path, make_source: Any, field: str, value: Any, message: str
) -> None:
    with pytest.raises(InputError, match=f"subj01, session 1: .*{message}"):
        build_dataset(offering(make_source, **{field: lambda *_: value}), tmp_path / "set")
    assert list(tmp_path.iterdir()) == []


def encoded(nsd_id: int, form: str) -> bytes:
    picture = np.random.default_rng(nsd_id).integers(0, 256, (8, 6, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format=form)
    return buffer.getvalue()


def test_picture_files_are_stored_as_they_are(tmp_path: Path, make_source: Any) -> None:
    source = make_source()
    source.picture = lambda n: encoded(n, "JPEG")
    dataset = build_dataset(source, tmp_path / "set")
    with tarfile.open(tmp_path / "set" / "subj01" / "test-00000.stimuli.tar") as tar:
        stored = {m.name: tar.extractfile(m).read() for m in tar if m.name.endswith("jpg")}  # type: ignore[union-attr]
    assert stored == {f"subj01_nsd{n:05d}.jpg": encoded(n, "JPEG") for n in (0, 1, 2)}
    assert verify(dataset.path) == []


def test_png_and_jpeg_side_by_side_show_the_pixels_of_each(tmp_path: Path, make_source: Any) -> None:
    source = make_source()
    source.picture = lambda n: encoded(n, ["PNG", "JPEG"][n % 2])
    dataset = build_dataset(source, tmp_path / "set", samples_per_shard=4)
    for partition in ("train", "test"):
        samples = dataset.samples("subj01", partition)
        for i, n in enumerate(samples.nsd_id.tolist()):
            expected = Image.open(io.BytesIO(encoded(n, ["PNG", "JPEG"][n % 2]))).convert("RGB")
            assert (dataset.picture(samples, i) == np.asarray(expected)).all()
    assert verify(dataset.path) == []


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (b"GIF89a", b"GIF89a", "Picture 0 is neither a PNG nor a JPEG file"),
        (encoded(0, "PNG"), encoded(1, "JPEG")[:200], "Picture 1 is no whole JPEG file"),
    ],
)
def test_what_is_no_picture_is_refused(
    tmp_path: Path, make_source: Any, first: bytes, second: bytes, message: str
) -> None:
    source = make_source(test=lambda *_: False)
    source.picture = lambda n: first if n == 0 else second
    with pytest.raises(InputError, match=message):
        build_dataset(source, tmp_path / "set")


def test_named_splits_choose_pictures_and_sessions(tmp_path: Path, make_source: Any) -> None:
    splits = {
        "hour": NamedSplit("train", last_session={"subj01": 1, "subj07": 3}, description="the first session"),
        "shared2": NamedSplit("test", nsd_ids=[2, 0, 77], last_session={"subj01": 2}),
    }
    dataset = build_dataset(with_splits(make_source(), splits), tmp_path / "set", samples_per_shard=4)
    assert dataset.splits["hour"].last_session == {"subj01": 1}
    assert dataset.splits["hour"].description == "the first session"
    whole, hour = (dataset.samples("subj01", split) for split in ("train", "hour"))
    first = make_source().subjects["subj01"].session(1)
    assert sorted(np.repeat(hour.nsd_id, hour.repeats)) == sorted(first.nsd_ids[first.nsd_ids >= 3])
    assert set(hour.sessions[hour.sessions >= 0].tolist()) == {1}
    rows, repeats = trials_of(hour)
    assert len(rows) == hour.repeats.sum()
    for i in range(len(hour)):
        place = whole.keys.tolist().index(hour.keys[i])
        chosen = dataset.responses(whole, place)[: hour.repeats[i]]
        assert (dataset.responses(hour, i) == chosen).all()
        assert (dataset.read_trials(hour, rows[rows == i], repeats[rows == i]) == chosen).all()
        assert [t["session"] for t in dataset.trials(hour, i)] == [1] * len(chosen)
    with pytest.raises(InputError, match="has repeats 0 to"):
        dataset.read_trials(hour, [0], [int(hour.repeats[0])])
    assert len(dataset.samples("subj02", "hour")) == len(dataset.samples("subj02", "train"))
    assert dataset.samples("subj02", "shared2").nsd_id.tolist() == [0, 2]
    assert dataset.samples("subj01", "shared2").sessions.max() == 2
    assert verify(dataset.path) == []


@pytest.mark.parametrize(
    ("name", "split", "message"),
    [
        ("test", NamedSplit("test"), "'test' cannot name a split"),
        ("a b", NamedSplit("test"), "'a b' cannot name a split"),
        ("late", NamedSplit("validation"), "Split late: partition 'validation' must be train or test"),
        (
            "late",
            NamedSplit("train", last_session={"subj01": 0}),
            "Split late: .*last sessions numbers from 1",
        ),
        ("own", NamedSplit("test", [0, 4]), "Split own says that picture 4 is a test picture"),
    ],
)
def test_splits_that_cannot_be_are_refused(
    tmp_path: Path, make_source: Any, name: str, split: NamedSplit, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        build_dataset(with_splits(make_source(), {name: split}), tmp_path / "set")


@pytest.mark.parametrize("normalise", ["session", "pooled"])
@pytest.mark.parametrize("window", [False, True])
def test_test_responses_change_no_byte_of_the_training_shards(
    tmp_path: Path, make_source: Any, normalise: Any, window: bool
) -> None:
    def given(loud: float) -> Any:
        def responses(session: int, trials: SessionTrials) -> np.ndarray:
            found = windows(session, trials) if window else trials.responses.copy()
            found[trials.nsd_ids < 3] *= loud
            return found

        splits = {
            "shared2": NamedSplit("test", [0, 2]),
            "hour": NamedSplit("train", last_session={"subj01": 1}),
        }
        return with_splits(offering(make_source, responses=responses), splits)

    built = [
        build_dataset(given(loud), tmp_path / f"{loud}", normalise=normalise, samples_per_shard=3).path
        for loud in (1.0, -50.0)
    ]
    files = [{p.relative_to(root): p.read_bytes() for p in sorted(root.rglob("*.*"))} for root in built]
    changed = {file.as_posix() for file in files[0] if files[0][file] != files[1][file]}
    tars = {
        f"{subject}/test-00000.responses.{end}"
        for subject in ("subj01", "subj02")
        for end in ("tar", "index.npz")
    }
    assert changed - {MANIFEST, "croissant.json"} == tars


def test_an_entry_without_new_keys_has_the_json_it_had_before(tiny: Dataset, tmp_path: Path) -> None:
    plain = json.loads((tiny.path / MANIFEST).read_text())
    assert set(plain["subjects"]["subj01"]) == {"voxels", "sessions", "rois", "table"}
    assert set(plain["splits"]["train"]) == {"partition", "nsd_ids", "description"}
    named = seal(
        plain | {"splits": plain["splits"] | {"hour": {"partition": "train", "last_session": {"subj01": 1}}}}
    )
    schema = json.loads(schema_path().read_text())
    for manifest in (plain, json.loads(named.model_dump_json())):
        jsonschema.validate(manifest, schema)


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # WebDataset leaves its files to the collector
def test_tars_are_byte_for_byte_those_of_webdataset(tmp_path: Path) -> None:
    keys = [f"subj01_nsd{i:05d}{'-' * (i % 70)}" for i in range(140)]
    samples = [(key, {"json": b"{}" * i, "a.npy": bytes(range(256)) * i}) for i, key in enumerate(keys)]
    ours = write_column(tmp_path, "subj01/train-00000", "responses", samples)
    with webdataset.TarWriter(
        str(tmp_path / "theirs.tar"), encoder=False, user="fmri2img", group="fmri2img", mtime=0
    ) as tar:
        for key, payloads in samples:
            tar.write({"__key__": key, **{name: payloads[name] for name in sorted(payloads)}})
    assert (tmp_path / ours.file).read_bytes() == (tmp_path / "theirs.tar").read_bytes()


def test_what_a_tar_header_cannot_hold_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not fit the header of a tar"):
        write_column(tmp_path, "subj01/train-00000", "responses", [("k" * 100, {"json": b""})])
    assert not list(tmp_path.rglob("*.*"))


def test_memory_does_not_grow_with_the_number_of_trials(tmp_path: Path, make_source: Any) -> None:
    class Large:
        voxels = 4000

        def __init__(self, sessions: int) -> None:
            self.sessions = list(range(1, sessions + 1))

        def voxel_table(self) -> dict[str, np.ndarray]:
            return {}

        def session(self, session: int) -> SessionTrials:
            generator = np.random.default_rng(session)
            responses = generator.standard_normal((300, self.voxels), dtype=np.float32)
            return SessionTrials(responses, generator.integers(0, 150, 300))

    peaks = []
    for sessions in (2, 16):
        source = make_source(subjects={"subj01": Large(sessions)})
        tracemalloc.start()
        build_dataset(source, tmp_path / f"{sessions}", samples_per_shard=8)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    a_session, statistics = 300 * 4000 * 4, 14 * 2 * 4000 * 8
    assert peaks[1] - peaks[0] < statistics + 0.2 * a_session
    assert peaks[1] < 5 * a_session
