"""The simulation's models: trained by one command, in folders that stock pipelines load, resumed to the same bits."""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, StableUnCLIPImg2ImgPipeline
from transformers import AutoTokenizer, CLIPModel, CLIPVisionModelWithProjection

from fmri2img.cli import run
from fmri2img.errors import InputError
from fmri2img.simulation.modelling import diffusion, folders, loop, measures, renders, sampling
from fmri2img.simulation.modelling.clip import embed_captions, places
from fmri2img.simulation.modelling.contrast import contrastive
from fmri2img.simulation.modelling.muon import Muon, orthogonal
from fmri2img.simulation.modelling.sizes import Schedule
from fmri2img.simulation.modelling.tokenizer import token_ids
from fmri2img.simulation.modelling.training import MODELS, train_models


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("simulation") / "models"
    assert run(["simulation", "train", "--out", str(out), "--size", "tiny"]) == 0
    return out


@pytest.fixture(scope="module")
def models(trained: Path) -> sampling.Models:
    return folders.load_all(trained)


def test_every_model_is_there_in_safetensors_with_its_card(trained: Path) -> None:
    assert {path.name for path in trained.iterdir() if path.is_dir()} == set(MODELS)
    kinds = {path.suffix for path in trained.rglob("*") if path.is_file()}
    assert kinds == {".safetensors", ".json", ".md"}
    assert (
        f"{json.loads((trained / 'quality.json').read_text())['vae']['psnr']} dB"
        in (trained / "README.md").read_text()
    )
    assert (trained.with_name("models.work") / "samples.png").is_file()


def test_judging_again_finds_the_same_figures(trained: Path) -> None:
    card, figures = (trained / "README.md").read_bytes(), (trained / "quality.json").read_bytes()
    (trained / "README.md").unlink()
    assert run(["simulation", "judge", str(trained)]) == 0
    assert ((trained / "README.md").read_bytes(), (trained / "quality.json").read_bytes()) == (card, figures)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_sd_is_a_stock_pipeline_that_makes_the_same_pictures(
    trained: Path, models: sampling.Models, guidance: float
) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(trained / "sd", local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    captions = ["a large red cup by a blue sea at night", "a green star"]
    latents = torch.randn((2, 4, 16, 16), generator=torch.Generator().manual_seed(0))
    made = pipeline(
        captions, num_inference_steps=2, guidance_scale=guidance, latents=latents, output_type="np"
    )
    ours = sampling.from_captions(models, captions, guidance=guidance, steps=2)
    np.testing.assert_allclose(ours / 255, made.images, atol=0.51 / 255 + 1e-4)


def test_unclip_is_a_stock_pipeline_that_makes_the_same_pictures(
    trained: Path, models: sampling.Models
) -> None:
    pipeline = StableUnCLIPImg2ImgPipeline.from_pretrained(trained / "unclip", local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    embeddings = torch.randn((3, 64), generator=torch.Generator().manual_seed(1))
    noise = torch.randn((3, 64), generator=torch.Generator().manual_seed(2))
    levels = torch.tensor([0, 300, 999])
    ours = diffusion.class_labels(embeddings, levels, noise, models.normaliser)
    for i, level in enumerate(levels.tolist()):
        theirs = pipeline.noise_image_embeddings(embeddings[i : i + 1], level, noise[i : i + 1])
        torch.testing.assert_close(ours[i : i + 1], theirs)
    drawn = torch.Generator().manual_seed(1)  # as sampling draws the noise of embeddings
    latents = torch.randn((3, 4, 16, 16), generator=torch.Generator().manual_seed(0))
    made = pipeline(
        image_embeds=embeddings,
        prompt=[""] * 3,
        num_inference_steps=2,
        guidance_scale=2.0,
        generator=drawn,
        latents=latents,
        output_type="np",
    )
    pictures = sampling.from_embeddings(models, embeddings, guidance=2.0, steps=2)
    np.testing.assert_allclose(pictures / 255, made.images, atol=0.51 / 255 + 1e-3)


def test_the_towers_in_the_pipelines_are_those_of_clip(trained: Path) -> None:
    clip = CLIPModel.from_pretrained(trained / "clip", dtype=torch.float32)
    vision = CLIPVisionModelWithProjection.from_pretrained(
        trained / "unclip" / "image_encoder", dtype=torch.float32
    )
    pixels = torch.rand((2, 3, 64, 64), generator=torch.Generator().manual_seed(0))
    whole = clip.visual_projection(clip.vision_model(pixel_values=pixels).pooler_output)
    torch.testing.assert_close(vision(pixel_values=pixels).image_embeds, whole)


def test_captions_end_where_the_text_tower_looks_for_their_end(
    trained: Path, models: sampling.Models
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(trained / "clip")
    captions = ["a large RED cup", "a large red cup by a blue sea, at night"]
    ids = torch.from_numpy(token_ids(tokenizer, captions))
    assert ids.shape == (2, 32) and ids[0, 5] == tokenizer.eos_token_id != ids[0, 4]
    assert str(tokenizer.decode(ids[0], skip_special_tokens=True)).strip() == "a large red cup"
    padded = embed_captions(models.clip, ids)
    torch.testing.assert_close(embed_captions(models.clip, ids[:1, :6]), padded[:1])
    assert not torch.allclose(padded[0], padded[1])


def test_without_an_image_embedding_unclip_is_a_network_conditioned_on_captions(
    models: sampling.Models,
) -> None:
    unet = diffusion.caption_unet(models.unclip)
    noisy, tokens = torch.randn((2, 4, 16, 16)), torch.randn((2, 32, 32))
    with torch.no_grad():
        expected = models.unclip(noisy, torch.tensor(500), tokens, class_labels=torch.zeros(2, 128)).sample
        torch.testing.assert_close(unet(noisy, torch.tensor(500), tokens).sample, expected)


def test_a_stopped_training_goes_on_to_the_same_bits(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "SECONDS_BETWEEN_CHECKPOINTS", -1.0)
    out, work, step = tmp_path / "models", tmp_path / "work", loop._step

    def stopped_at(last: int) -> Callable[..., float]:
        def stopping(task: loop.Task, state: loop._State, *rest: object, **more: object) -> float:
            if state.step == last:
                raise KeyboardInterrupt
            return step(task, state, *rest, **more)  # type: ignore[arg-type]

        return stopping

    for last in (1, 3):
        monkeypatch.setattr(loop, "_step", stopped_at(last))
        with pytest.raises(KeyboardInterrupt):
            train_models(out, work, seed=0, size="tiny", only=("clip",))
        assert not (out / "clip").exists()
    monkeypatch.setattr(loop, "_step", step)
    monkeypatch.setattr(loop, "_threads", lambda module: 2)  # nor do bits depend on the number of threads
    train_models(out, work, seed=0, size="tiny", only=("clip",))
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        assert (out / "clip" / name).read_bytes() == (trained / "clip" / name).read_bytes()


def test_rendering_goes_on_from_the_chunks_that_are_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(renders, "CHUNK", 4)
    asked = {"seed": 0, "first": renders.TRAINING_IDS, "count": 10, "tell": lambda *told: None}
    whole = renders.rendered(tmp_path / "whole", **asked)  # type: ignore[arg-type]
    renders.rendered(tmp_path / "again", **asked)  # type: ignore[arg-type]
    (tmp_path / "again" / "captions-00001.json").unlink()
    (tmp_path / "again" / "captions-00002.json").write_text('[["kept"], ["as it is"]]')
    again = renders.rendered(tmp_path / "again", **asked)  # type: ignore[arg-type]
    np.testing.assert_array_equal(whole.pictures, again.pictures)
    assert again.captions == [*whole.captions[:8], ["kept"], ["as it is"]]


def test_folders_of_another_training_are_refused(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="another seed"):
        train_models(trained, tmp_path, seed=1, size="tiny")
    with pytest.raises(InputError, match="the models are clip, vae"):
        train_models(tmp_path / "models", tmp_path, seed=0, size="tiny", only=("gan",))
    with pytest.raises(InputError, match="train clip first"):
        train_models(tmp_path / "models", tmp_path / "work", seed=0, size="tiny", only=("sd",))
    with pytest.raises(InputError, match="fmri2img simulation train"):
        run_judge(tmp_path)


def run_judge(folder: Path) -> None:
    from fmri2img.simulation.modelling.training import judge_models

    judge_models(folder, folder)


def test_frechet_distance_of_normal_distributions_is_its_closed_form() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(0, 1, (40000, 3)), rng.normal([1, 0, 0], [1, 2, 3], (40000, 3))
    assert measures.frechet(a, b) == pytest.approx(1 + 0 + 1 + 4, rel=0.03)  # |mean|^2 + sum of (s - t)^2
    assert measures.frechet(a, a) == pytest.approx(0, abs=1e-6)


def test_two_way_identification_counts_pairs() -> None:
    similar = np.array([[0.9, 0.1, 0.95], [0.2, 0.3, 0.1], [0.0, 0.5, 0.4]])
    wins = [similar[i, i] > similar[i, j] for i in range(3) for j in range(3) if i != j]
    assert measures.two_way(similar) == pytest.approx(np.mean(wins))


def test_psnr_is_that_of_a_known_error() -> None:
    true = np.full((2, 8, 8, 3), 100, dtype=np.uint8)
    assert measures.psnr(true + 10, true) == pytest.approx(20 * np.log10(255 / 10))


@pytest.mark.parametrize("shape", [(16, 48), (48, 16), (20, 20)])
def test_muon_steps_keep_the_directions_of_a_gradient_and_even_out_their_sizes(
    shape: tuple[int, int],
) -> None:
    rng = torch.Generator().manual_seed(0)
    left, _ = torch.linalg.qr(torch.randn((shape[0], 8), generator=rng))
    right, _ = torch.linalg.qr(torch.randn((shape[1], 8), generator=rng))
    sizes = torch.logspace(0, -1.3, 8)
    step = left.T @ orthogonal(left * sizes @ right.T) @ right
    assert 0.6 < float(step.diagonal().min()) <= float(step.diagonal().max()) < 1.25
    assert float((step - torch.diag(step.diagonal())).abs().max()) < 0.05


def test_muon_finds_the_minimum_of_a_badly_scaled_square_error() -> None:
    target, scale = torch.randn((6, 4, 1, 1), generator=torch.Generator().manual_seed(0)), torch.tensor(5.0)
    kernel = torch.nn.Parameter(torch.zeros(6, 4, 1, 1))
    muon = Muon({"kernel": kernel}, rate=0.1)
    with ThreadPoolExecutor(1) as threads:
        for step in range(200):
            loss = (scale * (kernel - target)[:3]).square().sum() + (kernel - target)[3:].square().sum()
            (kernel.grad,) = torch.autograd.grad(loss, [kernel])
            muon.step(1 - step / 200, threads)
    torch.testing.assert_close(kernel.detach(), target, atol=0.05, rtol=0)


def test_the_contrastive_loss_is_the_mean_cross_entropy_of_rows_and_columns() -> None:
    images, texts = torch.eye(3) * 2, torch.eye(3)[[0, 1, 1]]
    logits = np.e * np.eye(3)[:, [0, 1, 1]]  # a scale of e, cosines of 0 and 1
    rows = [-np.log(np.exp(logits[i, i]) / np.exp(logits[i]).sum()) for i in range(3)]
    columns = [-np.log(np.exp(logits[i, i]) / np.exp(logits[:, i]).sum()) for i in range(3)]
    found = contrastive(images, texts, torch.tensor(1.0))
    assert float(found) == pytest.approx(0.5 * (np.mean(rows) + np.mean(columns)), rel=1e-5)


def test_patches_start_nearest_to_their_neighbours() -> None:
    start = places(128).reshape(8, 8, 128)
    alike = (start * start[3, 4]).sum(-1)
    near = {(3, 4), (2, 4), (4, 4), (3, 3), (3, 5)}
    order = [divmod(int(i), 8) for i in alike.flatten().argsort(descending=True)]
    assert set(order[:5]) == near and order[0] == (3, 4)


def test_rates_rise_then_fall_as_half_a_cosine_and_to_nothing_where_a_training_ends_early() -> None:
    whole = Schedule(steps=400, batch=1, rate=1.0)
    early = Schedule(steps=250, batch=1, rate=1.0, horizon=400, fall=50)
    rates = [[loop.rate_at(step, schedule) for step in range(schedule.steps)] for schedule in (whole, early)]
    middle = 20 + 380 // 2
    assert [rates[0][step] for step in (0, 9, 20, middle)] == pytest.approx([0.05, 0.5, 1.0, 0.5])
    assert rates[0][-1] < 1e-4
    assert rates[1][:201] == rates[0][:201]
    assert rates[1][225] == pytest.approx(0.5 * rates[0][225]) and 0 < rates[1][249] < 0.02
