"""Captions: ROUGE by hand, METEOR through a stand-in, sentences through a small BERT in the real format."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from fmri2img.errors import InputError
from fmri2img.evaluation.metrics_captions import meteor, rouge_1, rouge_l, sentence_similarity, words

PAIRS = [
    ("A cat sat on the mat.", "the cat is on the mat"),
    ("the the the", "the cat"),
    ("a dog", "two birds"),
    ("", "a cat"),
]


def test_words_are_lower_case_letters_and_digits() -> None:
    assert words("It's 2 Cats – café!") == ["it", "s", "2", "cats", "caf"]


def test_rouge_counts_shared_words_and_subsequences_by_hand() -> None:
    # 6 and 6 words, of which cat, on, the, mat are shared once each; the pairs have 3 and 2 words, one shared.
    assert rouge_1(PAIRS) == pytest.approx([4 / 6, 2 / 5, 0, 0])
    assert rouge_l(PAIRS) == pytest.approx([4 / 6, 2 / 5, 0, 0])
    assert rouge_1([("on the mat sat", "sat on the mat")]) == pytest.approx([1.0])
    assert rouge_l([("on the mat sat", "sat on the mat")]) == pytest.approx([3 / 4])


def test_the_longest_subsequence_is_that_of_a_search_through_all(rng: np.random.Generator) -> None:
    def longest(a: list[str], b: list[str]) -> int:
        if not a or not b:
            return 0
        if a[0] == b[0]:
            return 1 + longest(a[1:], b[1:])
        return max(longest(a[1:], b), longest(a, b[1:]))

    for _ in range(20):
        a, b = (list(rng.choice(list("wxyz"), size=rng.integers(1, 8))) for _ in range(2))
        wanted = 2 * longest(a, b) / (len(a) + len(b))
        assert rouge_l([(" ".join(a), " ".join(b))])[0] == pytest.approx(wanted)


def test_meteor_is_asked_of_nltk_word_by_word(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def score(reference: list[str], predicted: list[str]) -> float:
        asked.append((reference, predicted))
        return 0.25

    monkeypatch.setitem(sys.modules, "nltk", SimpleNamespace(__path__=[]))
    monkeypatch.setitem(sys.modules, "nltk.translate", SimpleNamespace(__path__=[]))
    monkeypatch.setitem(
        sys.modules, "nltk.translate.meteor_score", SimpleNamespace(single_meteor_score=score)
    )
    monkeypatch.setitem(sys.modules, "nltk.tokenize", SimpleNamespace(word_tokenize=str.split))
    assert meteor(PAIRS[:2]).tolist() == [0.25, 0.25]
    assert asked[1] == (["the", "cat"], ["the", "the", "the"])

    def lacking(reference: list[str], predicted: list[str]) -> float:
        raise LookupError("wordnet")

    monkeypatch.setitem(
        sys.modules, "nltk.translate.meteor_score", SimpleNamespace(single_meteor_score=lacking)
    )
    with pytest.raises(InputError, match=r"nltk\.downloader wordnet"):
        meteor(PAIRS)


def test_without_nltk_meteor_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nltk", None)
    monkeypatch.setitem(sys.modules, "nltk.translate.meteor_score", None)
    with pytest.raises(InputError, match=r"nltk is not installed: pip install 'fmri2img\[metrics\]'"):
        meteor(PAIRS)


def test_a_sentence_is_the_mean_of_its_tokens_whatever_the_padding(tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel, BertTokenizer

    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "cat", "dog", "on", "the", "mat"]
    (tmp_path / "vocab.txt").write_text("\n".join(vocabulary))
    tokenizer = BertTokenizer(str(tmp_path / "vocab.txt"), model_max_length=32)
    tokenizer.save_pretrained(tmp_path)
    config = BertConfig(
        vocab_size=11,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=32,
    )
    torch.manual_seed(0)
    model = BertModel(config).eval()
    model.save_pretrained(tmp_path)
    texts = [("a cat on the mat", "the dog"), ("a dog", "a dog")]

    def embedded(text: str) -> torch.Tensor:
        with torch.no_grad():
            return model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0)

    wanted = [float(torch.cosine_similarity(embedded(a), embedded(b), dim=0)) for a, b in texts]
    found = sentence_similarity(texts, model=str(tmp_path))
    assert found == pytest.approx(wanted, abs=1e-5)
    assert found[1] == pytest.approx(1.0)
    with pytest.raises(InputError, match="lacks"):
        sentence_similarity(texts, model=str(tmp_path.parent))
