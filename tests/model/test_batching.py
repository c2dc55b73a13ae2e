import itertools

import numpy as np
import pytest

from elasticlm import ElasticModel
from elasticlm.model.batching import batches_by_length

LENGTHS = np.random.default_rng(0).integers(3, 60, 200)


def composed(limits):
    return [rows.tolist() for rows in batches_by_length(LENGTHS, **limits)]


@pytest.mark.parametrize("limits", [{"max_rows": 7}, {"max_tokens": 128}, {"max_rows": 3, "max_tokens": 128}, {}])
def test_batches_hold_every_row_once_longest_first(limits):
    rows = [row for batch in composed(limits) for row in batch]
    assert rows == sorted(range(len(LENGTHS)), key=lambda row: -LENGTHS[row])


@pytest.mark.parametrize("limits", [{"max_rows": 7}, {"max_tokens": 128}, {"max_rows": 3, "max_tokens": 128}])
def test_batches_are_as_large_as_the_limits_allow(limits):
    def within(rows):
        fits = len(rows) <= limits.get("max_rows", len(rows))
        return fits and len(rows) * max(LENGTHS[rows]) <= limits.get("max_tokens", np.inf)

    batches = composed(limits)
    assert all(map(within, batches))
    assert not any(within([*batch, following[0]]) for batch, following in itertools.pairwise(batches))


def test_a_text_over_the_limit_is_a_batch_of_its_own_and_no_texts_are_none():
    assert [rows.tolist() for rows in batches_by_length([5, 90, 80], max_tokens=10)] == [[1], [2], [0]]
    assert list(batches_by_length([], max_rows=2)) == list(batches_by_length([], max_tokens=2)) == []


def test_embed_forms_its_batches_by_characters(tiny_artifact, monkeypatch):
    model = ElasticModel.from_pretrained(tiny_artifact)
    texts, batches = ["ice", "", "glacier", "sun", "the river"], []
    tokenize = model.tokenize
    monkeypatch.setattr(model, "tokenize", lambda batch, kind: batches.append(batch) or tokenize(batch, kind))
    assert model.embed(texts, batch_size=2).shape == (5, 32)
    assert batches == [["the river", "glacier"], ["ice", "sun"], [""]]
    assert model.embed([]).shape == (0, 32)
