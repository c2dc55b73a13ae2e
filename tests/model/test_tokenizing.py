"""Pairs joined from token ids are the tokenizer's own, whatever their lengths; hostile texts cost no more."""

import random

import pytest
import torch
from transformers import AutoTokenizer

from elasticlm.model.tokenizing import CHARACTERS_PER_TOKEN, PairTemplate, tokenize, tokenize_pairs


@pytest.fixture(scope="module")
def tokenizer(tiny_bert):
    return AutoTokenizer.from_pretrained(tiny_bert)


@pytest.fixture(scope="module")
def template(tokenizer):
    return PairTemplate.of(tokenizer)


def texts(count, seed):
    rng = random.Random(seed)
    words = ["ice", "the", "river", "xyzzy", "sun", "!", "rain", "é", "\u3042"]
    return [" ".join(rng.choices(words, k=rng.choice((0, 1, 3, 8, 30)))) for _ in range(count)]


@pytest.mark.parametrize("limit", [4, 5, 11, 16, 48, 200])
@pytest.mark.parametrize("types", [True, False])
def test_pairs_are_joined_as_the_tokenizer_joins_them(tokenizer, template, limit, types):
    firsts, seconds = texts(80, limit), texts(80, limit + 1)
    ours = tokenize_pairs(tokenizer, template, firsts, seconds, limit, types=types)
    theirs = tokenizer(firsts, seconds, padding=True, truncation=True, max_length=limit,
                       return_token_type_ids=types, return_tensors="pt")  # fmt: skip
    assert list(ours) == ["input_ids", "attention_mask", *(["token_type_ids"] if types else [])]
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name
    assert ours.cut == [bool(encoding.overflowing) for encoding in theirs.encodings]


def test_a_template_with_two_separators_and_one_type(tokenizer, tmp_path):
    from tokenizers.processors import TemplateProcessing

    tokenizer.save_pretrained(tmp_path)
    other = AutoTokenizer.from_pretrained(tmp_path)
    special = [(token, other.convert_tokens_to_ids(token)) for token in ("[CLS]", "[SEP]")]
    other.backend_tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] [SEP] $B [SEP]", special_tokens=special
    )
    firsts, seconds = texts(40, 1), texts(40, 2)
    ours = tokenize_pairs(other, PairTemplate.of(other), firsts, seconds, 16, types=False)
    theirs = other(firsts, seconds, padding=True, truncation=True, max_length=16, return_tensors="pt")
    assert torch.equal(ours["input_ids"], theirs["input_ids"])


def test_texts_that_occur_again_are_tokenised_once(tokenizer, template, monkeypatch):
    asked = []
    real = type(tokenizer).__call__
    monkeypatch.setattr(
        type(tokenizer), "__call__", lambda self, text, *a, **k: asked.extend(text) or real(self, text, *a, **k)
    )
    tokenize_pairs(tokenizer, template, ["ice"] * 3, ["sun", "rain", "sun"], 16, types=True)
    assert asked == ["ice", "sun", "rain"]


@pytest.mark.parametrize(
    "text", ["!" * 128_000, "ice " * 32_000, "x" * 128_000, "\u3042" * 40_000, " " * 128_000 + "ice"]
)
def test_long_texts_are_cut_before_they_are_tokenised_and_said_to_be(tokenizer, template, text):
    clipped = text[: CHARACTERS_PER_TOKEN * 16]
    whole, short = (tokenize(tokenizer, [one], 16) for one in (text, clipped))
    assert torch.equal(whole["input_ids"], short["input_ids"])
    assert whole.cut == [True]
    whole, short = (tokenize_pairs(tokenizer, template, [one], [one], 16, types=True) for one in (text, clipped))
    assert torch.equal(whole["input_ids"], short["input_ids"])
    assert whole["input_ids"].shape[1] <= 16
    assert whole.cut == [True]


def test_a_prompt_is_not_cut_off_a_long_text(tokenizer):
    ids = tokenize(tokenizer, ["ice " * 1000], 8, prompt="the sun ")["input_ids"][0].tolist()
    assert ids == tokenizer("the sun ice ice ice ice")["input_ids"]
