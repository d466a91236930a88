"""The simulated cortex against what is known of it in closed form."""

from dataclasses import replace

import numpy as np
import pytest

from fmri2img.simulation import Simulation, SimulationSpec
from fmri2img.simulation.cortex import SHARES, Cortex
from fmri2img.simulation.energy import GRID, ORIENTATIONS, WAVELENGTHS, contrast_maps
from fmri2img.simulation.population import MAX_OBJECTS, Populations
from fmri2img.simulation.records import Scene
from fmri2img.simulation.reference import reference
from fmri2img.simulation.scenes import draw_scene

FRESH = 1 << 30
"""Ids from here on are in no test's simulation."""


def grating(wavelength: float, degrees: float) -> np.ndarray:
    y, x = np.mgrid[:64, :64]
    wave = np.cos(
        2 * np.pi * (x * np.cos(np.radians(degrees)) + y * np.sin(np.radians(degrees))) / wavelength
    )
    return np.repeat((128 + 90 * wave).astype(np.uint8)[None, :, :, None], 3, axis=3)


def test_a_uniform_picture_of_any_colour_leaves_every_map_empty() -> None:
    picture = np.full((1, 64, 64, 3), (200, 30, 90), dtype=np.uint8)
    assert np.abs(contrast_maps(picture)).max() < 1e-5


@pytest.mark.parametrize("scale", range(len(WAVELENGTHS)))
@pytest.mark.parametrize("orientation", range(ORIENTATIONS))
def test_a_grating_drives_the_map_tuned_to_it_most(scale: int, orientation: int) -> None:
    maps = contrast_maps(grating(WAVELENGTHS[scale], 180 * orientation / ORIENTATIONS))[0]
    energy = maps[: len(WAVELENGTHS) * ORIENTATIONS].mean(axis=1)
    assert energy.argmax() == scale * ORIENTATIONS + orientation


def test_energy_does_not_depend_on_the_phase_of_a_grating() -> None:
    still, moved = grating(10, 0), np.roll(grating(10, 0), 3, axis=2)
    middle = np.s_[0, ORIENTATIONS, GRID * GRID // 2 + GRID // 2]
    assert contrast_maps(moved)[middle] == pytest.approx(contrast_maps(still)[middle], rel=0.05)


def test_contrast_is_mapped_where_it_is() -> None:
    picture = np.full((1, 64, 64, 3), 128, dtype=np.uint8)
    picture[0, 44:52, 12:20] = 255
    energy = contrast_maps(picture)[0, :ORIENTATIONS].sum(axis=0)
    row, column = divmod(int(energy.argmax()), GRID)
    assert 10 <= row <= 13
    assert 2 <= column <= 5


def test_signals_are_standardised_over_pictures_never_used_to_set_them() -> None:
    shared = reference(0)
    cortex = Cortex(shared, "subj01", 90)
    signal = cortex.signal(shared.see([draw_scene(0, FRESH + i) for i in range(400)]))
    assert np.abs(signal.mean(axis=0)).max() < 0.25
    assert signal.var(axis=0).mean() == pytest.approx(1, abs=0.05)


def changed(before: list[Scene], after: list[Scene]) -> dict[str, float]:
    """How far the answers of each area's units move, as a share of their standard deviation over scenes."""
    populations = Populations(0)
    one, other = populations.answers(before), populations.answers(after)
    return {
        name: float(np.abs(one[name] - other[name]).mean() / one[name].std(axis=0).mean()) for name in one
    }


def test_textures_matter_most_to_ventral_units_and_least_to_those_for_faces() -> None:
    scenes = [draw_scene(0, FRESH + i) for i in range(100)]
    swap = {"plain": "spotted", "spotted": "striped", "striped": "chequered", "chequered": "plain"}
    moved = changed(
        scenes,
        [
            replace(scene, objects=tuple(replace(o, texture=swap[o.texture]) for o in scene.objects))
            for scene in scenes
        ],
    )
    assert moved["ventral"] > moved["LOC"] > moved["FFA"] > 0


def test_the_side_of_the_light_matters_where_places_are_seen() -> None:
    scenes = [draw_scene(0, FRESH + i) for i in range(100)]
    swap = {"left": "right", "right": "above", "above": "left"}
    moved = changed(
        scenes, [replace(scene, light=replace(scene.light, side=swap[scene.light.side])) for scene in scenes]
    )
    assert moved["PPA"] > moved["ventral"] > 0
    assert moved["LOC"] == moved["FFA"] == 0


def test_every_object_of_a_scene_is_seen() -> None:
    scenes = [
        scene for scene in (draw_scene(0, FRESH + i) for i in range(60)) if len(scene.objects) == MAX_OBJECTS
    ]
    fewer = [
        replace(
            scene, objects=scene.objects[:-1], painted=tuple(i for i in scene.painted if i < MAX_OBJECTS - 1)
        )
        for scene in scenes
    ]
    assert min(changed(scenes, fewer).values()) > 0.02


def test_the_stored_noise_ceiling_is_what_repeats_show() -> None:
    spec = SimulationSpec(
        subjects={"subj01": 200}, sessions=4, trials_per_session=300, test_pictures=0, drift=0
    )
    subject = Simulation(spec).subjects["subj01"]
    sessions = [subject.session(session) for session in subject.sessions]
    order = np.argsort(np.concatenate([trials.nsd_ids for trials in sessions]), kind="stable")
    trials = np.concatenate([trials.responses for trials in sessions])[order].reshape(400, 3, 200)
    within = trials.var(axis=1, ddof=1).mean(axis=0)
    shown = 1 - within / trials.reshape(1200, 200).var(axis=0, ddof=1)
    stored = subject.voxel_table()["noise_ceiling"]
    assert abs(shown.mean() - stored.mean()) < 0.01
    assert np.sqrt(np.mean((shown - stored) ** 2)) < 0.045
    assert np.corrcoef(shown, stored)[0, 1] > 0.94


def test_noise_has_variance_one_and_is_correlated_within_an_roi_more_than_between() -> None:
    cortex = Cortex(reference(0), "subj01", 90)
    noise = np.stack([cortex.noise(1, trial) for trial in range(3000)])
    np.testing.assert_allclose(noise.var(axis=0), 1, atol=0.14)
    correlation = np.abs(np.corrcoef(noise.T))
    same = cortex.roi[:, None] == cortex.roi
    off = ~np.eye(90, dtype=bool)
    assert correlation[same & off].mean() > 1.2 * correlation[~same].mean()


def test_noise_scale_lowers_the_ceiling_as_the_formula_says() -> None:
    quiet, loud = (Cortex(reference(0), "subj01", 90, noise_scale=scale) for scale in (1.0, 2.0))
    np.testing.assert_allclose(loud.ncsnr, quiet.ncsnr / 2, rtol=1e-6)
    np.testing.assert_allclose(loud.noise_ceiling, loud.ncsnr**2 / (1 + loud.ncsnr**2), rtol=1e-5)


def test_the_voxel_table_describes_every_voxel() -> None:
    table = Cortex(reference(0), "subj02", 501).voxel_table()
    assert {len(column) for column in table.values()} == {501}
    assert set(table["roi"]) == set(SHARES)
    assert table["roi"].dtype == np.dtype("<U16")
    early = np.isin(table["roi"], ["V1", "V2", "V3", "V4"])
    assert np.isfinite(table["rf_size"][early]).all()
    assert np.isnan(table["rf_size"][~early]).all()
    means = [table["rf_size"][table["roi"] == name].mean() for name in ("V1", "V2", "V3", "V4")]
    assert means == sorted(means)


def test_noise_ceilings_are_spread_as_in_nsd() -> None:
    ceiling = Cortex(reference(0), "subj01", 1572).noise_ceiling
    assert 0 < ceiling.min() < 0.02
    assert 0.1 < np.median(ceiling) < 0.15
    assert 0.4 < ceiling.max() < 0.6


def test_two_subjects_share_structure_but_no_voxel() -> None:
    shared = reference(0)
    features = shared.see([draw_scene(0, FRESH + i) for i in range(200)])
    first, second = (Cortex(shared, name, 200).signal(features)[:, -60:] for name in ("subj01", "subj02"))
    across = np.corrcoef(first.T, second.T)[:60, 60:]
    assert across.max() < 0.99
    assert across.max(axis=0).mean() > 0.5
