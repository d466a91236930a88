"""How near predicted captions are to those of the pictures seen: ROUGE, METEOR, similarity of sentences.

ROUGE is our own, equal to `rouge_score` without stemming, which the published code calls through `evaluate`. METEOR is
nltk's with its WordNet (an optional part: `pip install 'fmri2img[metrics]'`). Sentences are embedded with
transformers alone, as `sentence-transformers` does it for all-MiniLM-L6-v2: the mean over tokens.
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from importlib import import_module

import numpy as np
import torch

from fmri2img.errors import InputError
from fmri2img.evaluation.networks import EXTRA
from fmri2img.features.loading import load_model
from fmri2img.hub import CONFIG, TOKENIZER, WEIGHTS
from fmri2img.weights import folder_of

SENTENCES = "sentence-transformers/all-MiniLM-L6-v2"
MOST_TOKENS = 256
BATCH = 64
_SEPARATORS = re.compile(r"[^a-z0-9]+")

Pairs = Sequence[tuple[str, str]]
"""(predicted, reference) captions."""


def rouge_1(pairs: Pairs) -> np.ndarray:
    """F1 of single words, counted with their repeats (Lin 2004), (n,) float64 in [0, 1]."""

    def overlap(a: list[str], b: list[str]) -> int:
        return sum((Counter(a) & Counter(b)).values())

    return _rouge(pairs, overlap)


def rouge_l(pairs: Pairs) -> np.ndarray:
    """F1 of the longest common subsequence of words (Lin 2004), (n,) float64 in [0, 1]."""
    return _rouge(pairs, _common)


def _rouge(pairs: Pairs, overlap: Callable[[list[str], list[str]], int]) -> np.ndarray:
    scores = []
    for predicted, reference in pairs:
        a, b = words(predicted), words(reference)
        shared = overlap(a, b)
        scores.append(2 * shared / (len(a) + len(b)) if shared else 0.0)
    return np.array(scores, dtype=np.float64)


def words(text: str) -> list[str]:
    """Lower-case runs of ASCII letters and digits."""
    return [word for word in _SEPARATORS.split(text.lower()) if word]


def _common(a: list[str], b: list[str]) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(b) + 1)
    for word in a:
        last = 0
        for j, other in enumerate(b, start=1):
            above = row[j]
            row[j] = last + 1 if word == other else max(above, row[j - 1])
            last = above
    return row[-1]


def meteor(pairs: Pairs) -> np.ndarray:
    """METEOR (Banerjee and Lavie 2005) by nltk: alpha 0.9, beta 3, gamma 0.5, with stems and WordNet's synonyms.

    Raises:
        InputError: nltk or its data are not here.
    """
    try:
        score = import_module("nltk.translate.meteor_score")
        tokenize = import_module("nltk.tokenize").word_tokenize
    except ImportError as error:
        raise InputError(f"nltk is not installed: {EXTRA}") from error
    try:
        found = [
            score.single_meteor_score(tokenize(reference), tokenize(predicted))
            for predicted, reference in pairs
        ]
    except LookupError as error:
        raise InputError(
            "nltk's data are not here: python -m nltk.downloader wordnet omw-1.4 punkt_tab"
        ) from error
    return np.array(found, dtype=np.float64)


@torch.no_grad()
def sentence_similarity(
    pairs: Pairs, *, model: str = SENTENCES, device: torch.device | str = "cpu"
) -> np.ndarray:
    """Cosine similarity of the embeddings of both captions (Reimers and Gurevych 2019), (n,) float64.

    Args:
        model: hub name or folder of a BERT whose mean over tokens is the embedding.

    Raises:
        InputError: the model is not here.
    """
    from transformers import AutoModel, AutoTokenizer

    folder = folder_of(model, needs=(CONFIG, WEIGHTS), also=TOKENIZER)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise InputError(f"the tokenizer in {folder} cannot be loaded: {error}") from error
    network = load_model(AutoModel, folder, device, torch.float32)

    def embedded(texts: Sequence[str]) -> torch.Tensor:
        parts = []
        for start in range(0, len(texts), BATCH):
            given = tokenizer(
                list(texts[start : start + BATCH]),
                padding=True,
                truncation=True,
                max_length=min(MOST_TOKENS, tokenizer.model_max_length),
                return_tensors="pt",
            ).to(device)
            mask = given["attention_mask"][..., None]
            hidden = network(**given).last_hidden_state * mask
            parts.append((hidden.sum(1) / mask.sum(1)).double().cpu())
        return torch.cat(parts)

    predicted, reference = (embedded([pair[i] for pair in pairs]) for i in (0, 1))
    return np.asarray(torch.cosine_similarity(predicted, reference).numpy())
