"""Partners and shares: a pure function of the step, within a subject and a lane, the same at every world size."""

import numpy as np
import pytest
import torch

from fmri2img.trainer.objectives import Mixing, draw_mixing
from fmri2img.trainer.objectives.settings import BiMixCo

ROWS, LANES = {"subj01": 24, "subj02": 24}, range(4)
ALL = BiMixCo(mixed=1.0)


def of_rank(rank: int, world: int, settings: BiMixCo = ALL, step: int = 5, seed: int = 1) -> Mixing:
    each = len(LANES) // world
    rows = {name: count // world for name, count in ROWS.items()}
    return draw_mixing(settings, rows, LANES[rank * each : (rank + 1) * each], seed=seed, step=step)


def test_partners_are_of_the_same_subject_and_lane() -> None:
    mixing = of_rank(0, 1)
    place = np.arange(48)
    assert (mixing.partner.numpy() // 6 == place // 6).all()  # six rows of a subject in each lane


def test_every_row_is_the_partner_of_exactly_one_other() -> None:
    for step in range(20):
        partner = of_rank(0, 1, step=step).partner.numpy()
        assert sorted(partner) == list(range(48))
        assert (partner != np.arange(48)).all()


def test_all_partners_in_a_lane_are_drawn() -> None:
    found = {int(of_rank(0, 1, step=step).partner[0]) for step in range(60)}
    assert found == {1, 2, 3, 4, 5}


@pytest.mark.parametrize("world", [2, 4])
def test_rows_are_mixed_alike_at_every_world_size(world: int) -> None:
    values = torch.arange(48.0).reshape(48, 1)
    whole = of_rank(0, 1).mix(values)
    for rank in range(world):
        # A rank holds its lanes of one subject, then of the next.
        mine = [start + i for start in (0, 24) for i in range(24 * rank // world, 24 * (rank + 1) // world)]
        assert torch.equal(of_rank(rank, world).mix(values[mine]), whole[mine])


def test_another_step_or_seed_mixes_otherwise_and_the_same_again_alike() -> None:
    one, again = of_rank(0, 1), of_rank(0, 1)
    assert torch.equal(one.partner, again.partner) and torch.equal(one.share, again.share)
    for other in (of_rank(0, 1, step=6), of_rank(0, 1, seed=2)):
        assert not torch.equal(one.share, other.share)


def test_shares_are_of_the_beta_distribution_and_of_the_rows_that_were_chosen() -> None:
    settings = BiMixCo(beta=0.15, mixed=0.5)
    drawn = [of_rank(0, 1, settings, step=step) for step in range(200)]
    share = torch.cat([mixing.share for mixing in drawn]).numpy()
    partner = torch.cat([mixing.partner for mixing in drawn]).numpy()
    chosen = partner != np.tile(np.arange(48), 200)
    assert chosen.mean() == pytest.approx(0.5, abs=0.02)
    assert (share[~chosen] == 1).all()
    assert share[chosen].mean() == pytest.approx(0.5, abs=0.02)
    assert share[chosen].var() == pytest.approx(1 / (4 * (2 * 0.15 + 1)), abs=0.005)


def test_a_row_alone_in_its_lane_stays_as_it_is() -> None:
    mixing = draw_mixing(ALL, {"subj01": 4, "subj02": 4}, LANES, seed=0, step=0)
    assert mixing.partner.tolist() == list(range(8)) and mixing.share.tolist() == [1.0] * 8


def test_responses_are_mixed_with_the_partners_of_their_labels() -> None:
    mixing = of_rank(0, 1)
    responses = {"subj01": torch.randn(24, 3), "subj02": torch.randn(24, 5)}
    mixed = mixing.mix_responses(responses)
    for start, (name, rows) in zip((0, 24), responses.items(), strict=True):
        for i in range(24):
            other, share = int(mixing.partner[start + i]) - start, mixing.share[start + i]
            assert torch.allclose(mixed[name][i], share * rows[i] + (1 - share) * rows[other])


def test_unmixed_rows_are_the_same_to_the_bit() -> None:
    mixing = draw_mixing(BiMixCo(mixed=1e-9), ROWS, LANES, seed=0, step=0)
    rows = torch.randn(48, 7)
    assert torch.equal(mixing.mix(rows), rows)
