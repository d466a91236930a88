"""The tokenizer of the simulation's CLIP: byte-level BPE in CLIP's own file format, learned from the captions."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

CONTEXT = 32
START, END = "<|startoftext|>", "<|endoftext|>"


def learn_tokenizer(captions: Iterable[str], vocabulary: int) -> Any:
    """A `transformers.CLIPTokenizer` of at most `vocabulary` tokens. Ids of start and end are the last two, as in CLIP.

    The end is also the padding (Radford et al. 2021, released models).
    """
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.normalizer = normalizers.Lowercase()
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(
                Regex(r"[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"), behavior="removed", invert=True
            ),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - 2,
        initial_alphabet=alphabet,
        end_of_word_suffix="</w>",
        special_tokens=[letter + "</w>" for letter in alphabet],
        show_progress=False,
    )
    bpe.train_from_iterator(sorted(set(captions)), trainer)
    learned = sorted(bpe.get_vocab().items(), key=lambda item: item[1])
    vocab = {token: i for i, (token, _) in enumerate(learned)}
    vocab[START], vocab[END] = len(vocab), len(vocab) + 1
    return CLIPTokenizer(
        vocab=vocab,
        merges=_merges(bpe),
        bos_token=START,
        eos_token=END,
        unk_token=END,
        pad_token=END,
        model_max_length=CONTEXT,
    )


def _merges(bpe: Any) -> Any:
    import json

    return [tuple(pair) for pair in json.loads(bpe.to_str())["model"]["merges"]]


def token_ids(tokenizer: Any, captions: Sequence[str]) -> np.ndarray:
    """Padded and cut to the context: int64 (captions, 32)."""
    return tokenizer(
        list(captions), padding="max_length", max_length=CONTEXT, truncation=True, return_tensors="np"
    )["input_ids"].astype(np.int64)
