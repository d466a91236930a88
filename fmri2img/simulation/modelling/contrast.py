"""How the simulation's CLIP learns: its text tower with a convolutional teacher, then its image tower from that."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from fmri2img.simulation.modelling.clip import as_pixels, embed_captions
from fmri2img.simulation.modelling.sizes import PROJECTION
from fmri2img.simulation.modelling.teacher import Teacher

LARGEST_SCALE = 100.0
"""Of similarities, as in CLIP."""
SCALE = 20.0
"""Of similarities between what image tower and teacher make of pictures."""


class WordReader(nn.Linear):
    """Reads from image embeddings which words the captions of a picture hold, rare ones counting more.

    A loss that teaches an image tower much from few pictures (Huang et al. 2024, SuperClass).
    """

    def __init__(self, tokens: np.ndarray, vocabulary: int) -> None:
        """`tokens` are ids (pictures, captions of each, 32)."""
        super().__init__(PROJECTION, vocabulary)
        self._said = np.zeros((len(tokens), vocabulary), dtype=bool)
        self._said[np.arange(len(tokens))[:, None], tokens.reshape(len(tokens), -1)] = True
        frequency = self._said.mean(axis=0)
        rare = np.log(1 / np.maximum(frequency, 1 / len(tokens))) * (frequency > 0)
        self._weights = rare.astype(np.float32)

    def loss(self, embeddings: Tensor, rows: np.ndarray) -> Tensor:
        """Cross entropy of the words read from embeddings (n, 64) of these pictures."""
        said = torch.from_numpy(self._said[rows] * self._weights).to(embeddings.device)
        return functional.cross_entropy(self(embeddings), said / said.sum(1, keepdim=True))


class MainReader(nn.Linear):
    """Reads from image embeddings what the main object is, its colour, and the background.

    Captions say it too, but a contrastive loss is content with colours for long: only few pictures share all of them.
    """

    def __init__(self, truths: np.ndarray) -> None:
        """`truths` are the class of each question, int64 (pictures, questions)."""
        self._counts = [int(count) for count in truths.max(axis=0) + 1]
        super().__init__(PROJECTION, sum(self._counts))
        self._truths = truths

    def loss(self, embeddings: Tensor, rows: np.ndarray) -> Tensor:
        """Sum over questions of the cross entropy of what is read from embeddings (n, 64) of these pictures."""
        truths = torch.from_numpy(self._truths[rows]).to(embeddings.device)
        answers = self(embeddings).split(self._counts, dim=1)
        losses = [
            functional.cross_entropy(answer, truth) for answer, truth in zip(answers, truths.T, strict=True)
        ]
        return torch.stack(losses).sum()


def contrastive(images: Tensor, others: Tensor, scale: Tensor) -> Tensor:
    """The symmetric loss of n image embeddings and n others that are theirs (Radford et al. 2021, figure 3)."""
    similar = functional.normalize(images) @ functional.normalize(others).T
    scaled = scale.exp().clamp(max=LARGEST_SCALE) * similar
    truth = torch.arange(len(images), device=images.device)
    return 0.5 * (functional.cross_entropy(scaled, truth) + functional.cross_entropy(scaled.T, truth))


class TeacherTask:
    """Teacher and text tower learn which caption is whose, the teacher also which words a picture's captions hold and,
    told the `truths`, to name the main object."""

    name = "teacher"
    hidden: tuple[str, ...] = (".layers.", "teacher.blocks.")

    def __init__(
        self,
        teacher: Teacher,
        clip: Any,
        *,
        pictures: np.ndarray,
        tokens: np.ndarray,
        end: int,
        truths: np.ndarray | None = None,
    ) -> None:
        """`tokens` are ids (pictures, captions of each, 32), `end` the id after which there is only padding."""
        self._words = WordReader(tokens, clip.config.text_config.vocab_size).to(clip.device)
        for part in (clip.vision_model, clip.visual_projection):
            part.requires_grad_(False)
        parts = {"teacher": teacher.train(), "clip": clip.train(), "reader": self._words}
        self._main = None
        if truths is not None:
            self.name = "shapes"
            parts["main"] = self._main = MainReader(truths).to(clip.device)
        self.module: nn.Module = nn.ModuleDict(parts)
        self._teacher, self._clip = teacher, clip
        self._pictures, self._tokens, self._end = pictures, tokens, end

    def loss(self, rows: np.ndarray, rng: torch.Generator) -> Tensor:
        clip, device = self._clip, self._clip.device
        which = torch.randint(self._tokens.shape[1], (len(rows),), generator=rng).numpy()
        ids = torch.from_numpy(self._tokens[rows, which]).to(device)
        longest = int((ids == self._end).long().argmax(1).max()) + 1
        with torch.autocast(device.type, dtype=torch.bfloat16, cache_enabled=False):
            images = self._teacher.embed(self._teacher.seen(as_pixels(self._pictures[rows], device))).float()
            texts = embed_captions(clip, ids[:, :longest]).float()
        loss = contrastive(images, texts, clip.logit_scale) + self._words.loss(images, rows)
        return loss if self._main is None else loss + self._main.loss(images, rows)


class ClipTask:
    """The image tower learns what the teacher sees, where and as a whole, and to name words and the main object.

    The text tower stays as it learned with the teacher.
    """

    name = "clip"
    hidden: tuple[str, ...] = (".layers.",)

    def __init__(
        self, clip: Any, teacher: Teacher, *, pictures: np.ndarray, tokens: np.ndarray, truths: np.ndarray
    ) -> None:
        """`tokens` are ids (pictures, captions of each, 32), `truths` what a `MainReader` reads."""
        config = clip.config
        self._words = WordReader(tokens, config.text_config.vocab_size).to(clip.device)
        self._main = MainReader(truths).to(clip.device)
        clip.train().requires_grad_(False)
        clip.set_attn_implementation("eager")  # in bfloat16 on a processor, half of torch's fused one's time
        tower, projection = clip.vision_model, clip.visual_projection
        for part in (tower, projection):
            part.requires_grad_(True)
        width = config.vision_config.hidden_size
        self._match = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width)).to(clip.device)
        parts = {"tower": tower, "projection": projection, "match": self._match}
        self.module: nn.Module = nn.ModuleDict(parts | {"reader": self._words, "main": self._main})
        self._clip, self._teacher = clip, teacher.eval().requires_grad_(False)
        self._pictures, self._scale = pictures, torch.tensor(float(np.log(SCALE)))
        with torch.no_grad():
            seen = teacher.seen(as_pixels(pictures[:512], clip.device))
            self._mean, self._std = (
                value[:, None, None] for value in (seen.mean((0, 2, 3)), seen.std((0, 2, 3)) + 1e-3)
            )

    def loss(self, rows: np.ndarray, rng: torch.Generator) -> Tensor:
        clip, teacher = self._clip, self._teacher
        pixels = as_pixels(self._pictures[rows], clip.device)
        with torch.autocast(clip.device.type, dtype=torch.bfloat16, cache_enabled=False):
            with torch.no_grad():
                seen = teacher.seen(pixels)
                meant = teacher.embed(seen).float()
            found = clip.vision_model(pixel_values=pixels)
            patches = self._match(found.last_hidden_state[:, 1:]).float()
            images = clip.visual_projection(found.pooler_output).float()
        there = ((seen.float() - self._mean) / self._std).flatten(2).transpose(1, 2)
        return (
            functional.mse_loss(patches, there)
            + functional.mse_loss(images, meant)
            + contrastive(images, meant, self._scale.to(images.device))
            + self._words.loss(images, rows)
            + self._main.loss(images, rows)
        )
