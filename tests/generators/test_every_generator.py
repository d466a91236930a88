"""What every generator promises: pictures in range, from features and seeds alone, whoever the neighbours are."""

import threading
from typing import Any

import pytest
import torch

from fmri2img.errors import InputError

Tiny = Any


def test_pictures_are_what_the_protocol_says(tiny: Tiny, case: str) -> None:
    generator = tiny.load(case)
    features = tiny.features()
    read = {name: features[name] for name in generator.spaces}
    pictures = generator.generate(read, tiny.seeded(1, 2, 3))
    assert pictures.shape == (3, 3, 16, 16) and pictures.dtype == torch.float32
    assert pictures.min() >= 0 and pictures.max() <= 1 and pictures.std() > 0.01


def test_the_same_seeds_give_the_same_bytes_and_others_do_not(tiny: Tiny, case: str) -> None:
    generator, features = tiny.load(case), tiny.features()
    first = generator.generate(features, tiny.seeded(1, 2, 3))
    torch.rand(7)  # the random state of all is nobody's business
    assert torch.equal(first, generator.generate(features, tiny.seeded(1, 2, 3)))
    other = generator.generate(features, tiny.seeded(1, 2, 4))
    assert torch.equal(first[:2], other[:2])
    if case not in ("pixels", "vae"):
        assert not torch.equal(first[2], other[2])


def test_a_picture_does_not_know_its_neighbours(tiny: Tiny, case: str) -> None:
    generator = tiny.load(case)
    features, others = tiny.features(4), tiny.features(4, seed=1)
    whole = generator.generate(features, tiny.seeded(1, 2, 3, 4))
    backwards = generator.generate({n: v.flip(0) for n, v in features.items()}, tiny.seeded(4, 3, 2, 1))
    torch.testing.assert_close(backwards.flip(0), whole, atol=1e-5, rtol=0)
    padded = {name: torch.cat([value[:2], others[name][2:]]) for name, value in features.items()}
    assert torch.equal(whole[:2], generator.generate(padded, tiny.seeded(1, 2, 8, 9))[:2])
    alone = generator.generate({name: value[2:3] for name, value in features.items()}, tiny.seeded(3))
    torch.testing.assert_close(alone, whole[2:3], atol=1e-5, rtol=0)


def test_every_space_that_is_read_changes_the_picture(tiny: Tiny, case: str) -> None:
    generator, features, others = tiny.load(case), tiny.features(1), tiny.features(1, seed=1)
    first = generator.generate(features, tiny.seeded(1))
    for space in generator.spaces:
        other = generator.generate(features | {space: others[space]}, tiny.seeded(1))
        assert (first - other).abs().max() > 1e-3, space
    for space in set(features) - set(generator.spaces):
        assert torch.equal(first, generator.generate(features | {space: others[space]}, tiny.seeded(1)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gives_nearly_the_same_pictures(tiny: Tiny, case: str, dtype: torch.dtype) -> None:
    features = tiny.features()
    exact = tiny.load(case).generate(features, tiny.seeded(1, 2, 3))
    half = tiny.load(case, dtype).generate(features, tiny.seeded(1, 2, 3))
    assert half.dtype == torch.float32
    assert (half - exact).abs().mean() < 0.03


def test_a_recipe_gives_back_the_generator_it_holds(tiny: Tiny, case: str) -> None:
    config = tiny.config(case)
    assert type(config).model_validate(config.model_dump(mode="json")) == config


def test_a_space_that_is_not_predicted_is_named_before_any_work(tiny: Tiny, case: str) -> None:
    generator = tiny.load(case)
    shapes = {name: value.shape[1:] for name, value in tiny.features(1).items()}
    generator.check(shapes)
    for space in generator.spaces:
        fewer = {name: shape for name, shape in shapes.items() if name != space}
        with pytest.raises(InputError, match=f"needs the space {space}, the decoder predicts"):
            generator.check(fewer)
        with pytest.raises(InputError, match=rf"{space} is \(77, 99\)"):
            generator.check(shapes | {space: (77, 99)})


def test_weights_are_told_by_file_and_digest(tiny: Tiny, case: str) -> None:
    told = tiny.load(case).provenance()
    assert bool(told) == (case != "pixels")
    assert all(name.endswith(".safetensors") and len(digest) == 64 for name, digest in told.items())


def test_two_workers_of_one_process_do_not_disturb_each_other(tiny: Tiny) -> None:
    features, made = tiny.features(2), {}
    config = tiny.config("sd", sampler="dpm++", steps=4)
    generators = {seed: config.load("cpu") for seed in (1, 2)}
    truth = {seed: generators[seed].generate(features, tiny.seeded(seed, seed)) for seed in (1, 2)}

    def work(seed: int) -> None:
        made[seed] = generators[seed].generate(features, tiny.seeded(seed, seed))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(made[seed], truth[seed]) for seed in (1, 2))
