"""What a family decides about texts."""

import numpy as np
import pytest
import torch

from elasticlm import ElasticModel
from elasticlm.trainer.evaluation.classification import outputs
from elasticlm.trainer.training_texts import TokenizedTexts, joined

FIRSTS, SECONDS = ["ice and snow", "wind"], ["the sun and the moon", "rain"]


@pytest.fixture
def classifier(tiny_artifact, monkeypatch):
    """A classifier of a family without token types, as RoBERTa is: BERT's other parts."""
    model = ElasticModel.from_pretrained(tiny_artifact).with_head("classify", ["no", "yes"])
    monkeypatch.setattr(model.encoder.family, "uses_token_types", False)
    return model


def test_families_without_token_types_get_none(classifier):
    rows = np.arange(2)
    pairs = TokenizedTexts.of_pairs(classifier, zip(FIRSTS, SECONDS, strict=True))
    parts = [TokenizedTexts.to_join(classifier, texts, 64) for texts in (FIRSTS, SECONDS)]
    names = ["attention_mask", "input_ids"]
    assert sorted(classifier.tokenize(FIRSTS)) == names
    assert sorted(classifier.tokenize_pairs(FIRSTS, SECONDS)) == names
    assert sorted(pairs.inputs(rows)) == sorted(pairs.part(1, 2).inputs(rows[:1])) == names
    assert sorted(joined(classifier, *parts, rows, rows)) == names


def test_pairs_without_token_types_are_evaluated_as_they_are_served(classifier):
    pairs = TokenizedTexts.of_pairs(classifier, zip(FIRSTS, SECONDS, strict=True))
    evaluated = outputs(classifier, 50, pairs, desc="classify")
    max_diff = (evaluated - classifier.classify(FIRSTS, SECONDS, level=50)).abs().max()
    assert max_diff < 1e-5, max_diff


def test_an_empty_second_text_keeps_the_types_of_the_tokenizer(tiny_artifact):
    model = ElasticModel.from_pretrained(tiny_artifact)
    found = TokenizedTexts.of_pairs(model, [("ice", ""), ("", "")]).inputs(np.arange(2))
    for name, tensor in model.tokenize_pairs(["ice", ""], ["", ""]).items():
        assert torch.equal(found[name], tensor), name
