"""The one command that trains the simulation's models: each goes on where it was stopped, finished ones are kept."""

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

from fmri2img.console import stage
from fmri2img.errors import InputError
from fmri2img.files import alone, canonical_json, write_atomic, write_json
from fmri2img.simulation.modelling import autoencoder, clip, contrast, control, diffusion, folders, renders
from fmri2img.simulation.modelling.card import write_card
from fmri2img.simulation.modelling.loop import Task, train
from fmri2img.simulation.modelling.prepared import per_picture
from fmri2img.simulation.modelling.quality import judge
from fmri2img.simulation.modelling.sheet import draw_sheet
from fmri2img.simulation.modelling.sizes import SIZES, Size
from fmri2img.simulation.modelling.teacher import Teacher
from fmri2img.simulation.modelling.tokenizer import learn_tokenizer, token_ids
from fmri2img.simulation.records import BACKGROUNDS, COLOURS
from fmri2img.simulation.shapes import SHAPES

MODELS = ("clip", "vae", "unclip", "sd", "controlnet")
"""In the order in which they build on each other."""


def train_models(
    out: Path, work: Path, *, seed: int, size: str, only: Sequence[str] = (), device: str = "cpu"
) -> None:
    """Train the models that `out` lacks, all or some of `MODELS`.

    Raises:
        InputError: a name that is no model's, or folders of another seed, size or other scenes.
    """
    if unknown := sorted(set(only) - set(MODELS)):
        raise InputError(f"--only {' '.join(unknown)}: the models are {', '.join(MODELS)}")
    torch.set_flush_denormal(True)
    workshop = Workshop(out, work, seed, SIZES[size], device)
    workshop.agree()
    for name in MODELS:
        if (not only or name in only) and not (out / name).exists():
            workshop.make(name)
    if all((out / name).exists() for name in MODELS) and not (out / "README.md").exists():
        workshop.judge()


def judge_models(out: Path, work: Path) -> None:
    """Measure the models of a folder and write `quality.json` and the card there, the sheet of samples into `work`.

    Raises:
        InputError: models are missing, or the folder says of no training.
    """
    path = out / "training.json"
    missing = [name for name in MODELS if not (out / name).exists()]
    if missing or not path.exists():
        lacks = ", ".join(missing or [path.name])
        raise InputError(f"{out} lacks {lacks}: train with `fmri2img simulation train --out {out}` first")
    plan = json.loads(path.read_text())
    workshop = Workshop(out, work, plan["seed"], Size.of(plan["size"]), "cpu")
    workshop.agree()
    workshop.judge()


@dataclass
class Workshop:
    """A training under way: where it is kept, and what its models are made of."""

    out: Path
    work: Path
    seed: int
    size: Size
    device: str

    def agree(self) -> None:
        """Both folders belong to this seed, size and scenes, or are new.

        Raises:
            InputError: they belong to others.
        """
        plan = {
            "seed": self.seed,
            "size": self.size.record(),
            "scenes": renders.scenes_digest(self.seed),
        }
        as_stored = json.loads(canonical_json(plan))
        for folder in (self.out, self.work):
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / "training.json"
            if path.exists() and json.loads(path.read_text()) != as_stored:
                raise InputError(
                    f"{folder} holds models of another seed, size or other scenes ({path.name} says which): "
                    "use another folder, or delete this one"
                )
            if not path.exists():
                write_json(path, plan)

    def make(self, name: str) -> None:
        """Train one model and save its folder."""
        torch.manual_seed(self.seed)  # the first weights
        makers: dict[str, Callable[[], None]] = {
            "clip": self._clip,
            "vae": self._vae,
            "unclip": self._unclip,
            "sd": self._sd,
            "controlnet": self._controlnet,
        }
        (self.work / name).mkdir(exist_ok=True)
        with alone(self.work / name, f"another process is training {name} in {self.work}: let it finish"):
            makers[name]()

    def judge(self) -> None:
        """Measure what the models are worth: `quality.json` and the card beside them, a sheet of samples in `work`."""
        held_out = self.held_out
        scenes = [renders.scene_of(self.seed, renders.HELD_OUT_IDS + i) for i in range(self.size.held_out)]
        models = folders.load_all(self.out)
        with stage("Measuring quality", "sets of samples") as tell:
            quality = judge(models, held_out, scenes, self.size, tell)
            draw_sheet(models, held_out, self.size).save(self.work / "samples.png")
        write_json(self.out / "quality.json", quality)
        training = json.loads((self.out / "training.json").read_text())
        card = write_card(quality, training, folders.parameters(models))
        write_atomic(self.out / "README.md", card.encode())

    @cached_property
    def training(self) -> renders.Renders:
        """Pictures and captions to learn from."""
        return self._rendered("pictures", renders.TRAINING_IDS, self.size.pictures)

    @cached_property
    def held_out(self) -> renders.Renders:
        """Pictures and captions that no model has seen."""
        return self._rendered("held-out", renders.HELD_OUT_IDS, self.size.held_out)

    def _latents(self, vae: Any) -> np.ndarray:
        """Means of the latents of the pictures to learn from, scaled: float16 (pictures, 4, 16, 16)."""
        scale = vae.config.scaling_factor
        return self._computed("latents", lambda pixels: autoencoder.encode(vae, pixels) * scale).astype(
            np.float16
        )

    def _computed(self, name: str, what: Callable[[torch.Tensor], torch.Tensor]) -> np.ndarray:
        """What a trained model makes of each picture to learn from, kept in `work`."""
        path = self.work / f"{name}.npy"
        if not path.exists():
            with stage(f"Computing {name}", "pictures") as tell:
                made = per_picture(self.training.pictures, what, torch.device(self.device), tell)
            _save(path, made)
        return np.load(path)

    def _main_objects(self) -> np.ndarray:
        """Kind and colour of the main object and the background of the pictures to learn from: int64 (pictures, 3)."""
        names: tuple[list[str], ...] = (list(SHAPES), list(COLOURS), list(BACKGROUNDS))
        scenes = (renders.scene_of(self.seed, renders.TRAINING_IDS + i) for i in range(self.size.pictures))
        found = [(s.objects[0].kind, s.objects[0].colour, s.background.kind) for s in scenes]
        return np.array([[of.index(name) for of, name in zip(names, row, strict=True)] for row in found])

    def _rendered(self, name: str, first: int, count: int) -> renders.Renders:
        (self.work / name).mkdir(exist_ok=True)
        busy = f"another process is rendering in {self.work}: let it finish"
        with alone(self.work / name, busy), stage(f"Rendering {name}", "pictures") as tell:
            return renders.rendered(self.work / name, seed=self.seed, first=first, count=count, tell=tell)

    def _train(self, task: Task) -> None:
        schedule = getattr(self.size, task.name)
        with stage(f"Training {task.name}", "steps") as tell:
            train(
                task,
                self.work / task.name,
                schedule,
                pictures=self.size.pictures,
                seed=self.seed,
                tell=tell,
            )

    def _tokens(self, tokenizer: Any) -> np.ndarray:
        flat = [caption for captions in self.training.captions for caption in captions]
        return token_ids(tokenizer, flat).reshape(self.size.pictures, renders.CAPTIONS, -1)

    def _lessons(self, tokenizer: Any, vae: Any) -> dict[str, np.ndarray]:
        """What every diffusion model learns from."""
        tokens, empty = self._tokens(tokenizer), token_ids(tokenizer, [""])[0]
        return {"latents": self._latents(vae), "tokens": tokens, "empty": empty}

    def _clip(self) -> None:
        flat = (caption for captions in self.training.captions for caption in captions)
        tokenizer = learn_tokenizer(flat, self.size.vocabulary)
        model = clip.new_clip(self.size, tokenizer).to(self.device)
        teacher = Teacher(self.size.clip_width).to(self.device)
        lessons = {"pictures": self.training.pictures, "tokens": self._tokens(tokenizer)}
        end, truths = tokenizer.eos_token_id, self._main_objects()
        self._train(contrast.TeacherTask(teacher, model, end=end, **lessons))
        self._train(contrast.TeacherTask(teacher, model, end=end, truths=truths, **lessons))
        self._train(contrast.ClipTask(model, teacher, truths=truths, **lessons))
        folders.save_clip(self.out / "clip", model, tokenizer)

    def _vae(self) -> None:
        model = autoencoder.new_autoencoder(self.size).to(self.device)
        self._train(autoencoder.AutoencoderTask(model, self.training.pictures))
        model.register_to_config(
            scaling_factor=autoencoder.scaling_factor(model, self.training.pictures[:1024])
        )
        folders.save_part(self.out / "vae", model)

    def _sd(self) -> None:
        model, tokenizer, vae = self._bases()
        first = folders.load_part(UNet2DConditionModel, self.out / "unclip" / "unet", self.device)
        unet = diffusion.caption_unet(first)
        self._train(diffusion.CaptionTask(unet, model, **self._lessons(tokenizer, vae)))
        folders.save_sd(self.out / "sd", unet, vae, model, tokenizer)

    def _unclip(self) -> None:
        model, tokenizer, vae = self._bases()
        unet = diffusion.new_unet(self.size).to(self.device)
        embeddings = self._computed("embeddings", lambda pixels: clip.embed_pictures(model, pixels))
        normaliser = folders.new_normaliser(embeddings)
        lessons = self._lessons(tokenizer, vae)
        self._train(diffusion.UnclipTask(unet, model, normaliser, embeddings=embeddings, **lessons))
        folders.save_unclip(self.out / "unclip", unet, vae, model, tokenizer, normaliser)

    def _controlnet(self) -> None:
        model, tokenizer, vae = self._bases()
        unet = folders.load_part(UNet2DConditionModel, self.out / "sd" / "unet", self.device)
        controlnet = control.new_controlnet(unet)
        pictures = self.training.pictures
        task = control.ControlTask(
            controlnet, unet, model, pictures=pictures, **self._lessons(tokenizer, vae)
        )
        self._train(task)
        folders.save_part(self.out / "controlnet", controlnet)

    def _bases(self) -> tuple[Any, Any, Any]:
        """CLIP with its tokenizer and the autoencoder, which every diffusion model builds on."""
        model, tokenizer = folders.load_clip(self.out / "clip", self.device)
        return model, tokenizer, folders.load_part(AutoencoderKL, self.out / "vae", self.device)


def _save(path: Path, values: np.ndarray) -> None:
    data = io.BytesIO()
    np.save(data, values)
    write_atomic(path, data.getvalue())
