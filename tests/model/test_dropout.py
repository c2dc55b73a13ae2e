"""Dropout: where Hugging Face's classes have it, at their rates, and nowhere outside training."""

import numpy as np
import pytest
import torch
from families import tiny_teacher

from elasticlm import ElasticModel, ElasticStructure, InputError
from elasticlm.model.dropout import NO_DROPOUT, Dropout
from elasticlm.model.families import FAMILIES
from elasticlm.model.families.base import CLASSIFIER
from elasticlm.model.teacher import load_model

EVERY_FAMILY = pytest.mark.parametrize("name", sorted(FAMILIES))
BERT_RATES = {"hidden_dropout_prob": 0.15, "attention_probs_dropout_prob": 0.25, "classifier_dropout": 0.35}
RATES = {
    "distilbert": {"dropout": 0.15, "attention_dropout": 0.25, "seq_classif_dropout": 0.35},
    "modernbert": {
        "embedding_dropout": 0.15,
        "attention_dropout": 0.25,
        "mlp_dropout": 0.1,
        "classifier_dropout": 0.35,
    },
    "mpnet": {"hidden_dropout_prob": 0.15, "attention_probs_dropout_prob": 0.25},
}
"""Rates that differ from place to place, as each family's own configuration names them."""


def made(name, folder, kind=CLASSIFIER):
    """Hugging Face's model of a family with such rates, in training; ours of it; and two texts, one of them padded."""
    theirs = tiny_teacher(name, folder, kind, num_labels=3, **RATES.get(name, BERT_RATES)).train()
    ours = load_model(folder)
    ids = torch.randint(5, ours.config.vocab_size, (2, 9), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    ids[0, -3:], mask[0, -3:] = ours.tokenizer.pad_token_id, 0
    return theirs, ours, {"input_ids": ids, "attention_mask": mask}


@EVERY_FAMILY
def test_logits_in_training_are_hugging_faces_bit_by_mask(name, tmp_path):
    """The same generator state gives the same masks, since values are dropped in the same places and order."""
    theirs, ours, inputs = made(name, tmp_path)
    rates = ours.encoder.family.dropout(ours.config)
    with torch.no_grad():
        torch.manual_seed(3)
        expected = theirs(**inputs).logits
        torch.manual_seed(3)
        with ours.dropping(rates):
            found = ours(**inputs, level=100)
        whole = ours(**inputs, level=100)
    assert (found - expected).abs().max() < 1e-5
    assert (whole - expected).abs().max() > 1e-2


@EVERY_FAMILY
def test_every_place_has_the_rate_of_its_field(name, tmp_path):
    _, ours, _ = made(name, tmp_path)
    family, config = ours.encoder.family, ours.config
    rates = family.dropout(config)
    assert (rates.attention, rates.embeddings) == (0.25, 0.15)
    places = set(family.dropout_fields)
    assert {place for place in places if getattr(rates, place) == 0} == set()
    assert family.dropout(config, 0.2) == Dropout(**dict.fromkeys(places, 0.2))
    assert family.dropout(config, 0.0) == NO_DROPOUT


def test_a_bert_that_names_no_rates_has_those_of_its_class(tiny_artifact):
    model = ElasticModel.from_pretrained(tiny_artifact)
    places = ("embeddings", "attention", "attention_output", "feed_forward_output", "head")
    assert model.encoder.family.dropout(model.config) == Dropout(**dict.fromkeys(places, 0.1))


@EVERY_FAMILY
def test_the_mean_over_masks_is_close_to_the_whole_and_empty_layers_drop_their_bias(name, tmp_path):
    tiny_teacher(name, tmp_path)
    random, scale = np.random.default_rng(0), np.array([[1.0], [1.0], [0.05]])
    scores = random.random((3, 4)) * scale, random.random((3, 48)) * scale
    structures, *orders = ElasticStructure.from_scores(*scores, (100, 10))
    model = load_model(tmp_path).cut(structures, *orders)
    inputs = {"input_ids": torch.randint(5, 60, (64, 5)), "attention_mask": torch.ones(64, 5, dtype=torch.long)}
    inputs = {key: value[:1].expand(64, -1) for key, value in inputs.items()}
    assert 0 in structures[10].heads
    with torch.no_grad():
        whole = model.hidden(**inputs, level=10)[0]
        with model.dropping(model.encoder.family.dropout(model.config, 0.02)):
            dropped = torch.cat([model.hidden(**inputs, level=10) for _ in range(8)])
    assert len(dropped.unique(dim=0)) > 400, "each text has its own mask"
    apart = (dropped.mean(0) - whole).abs().mean() / whole.abs().mean()
    assert apart < 0.05
    assert (dropped - whole).abs().mean() > 2 * (dropped.mean(0) - whole).abs().mean()


def test_nothing_is_dropped_by_the_backend_by_a_teacher_on_top_or_after_the_block(tiny_bert, random_scores):
    teacher = load_model(str(tiny_bert))
    structures, *orders = ElasticStructure.from_scores(*random_scores, [100, 50], top=True)
    model = teacher.cut(structures, *orders)
    inputs = model.tokenize(["how is a glacier cave formed", "the wind"])
    state = torch.get_rng_state()
    with torch.no_grad():
        whole = {level: model(**inputs, level=level) for level in (100, 50)}
        with model.dropping(Dropout(attention=0.5, embeddings=0.5)):
            assert torch.equal(model(**inputs, level=100), whole[100])
            assert torch.equal(model.encode(inputs, 50), whole[50])
            assert torch.equal(torch.get_rng_state(), state)
            assert not torch.equal(model(**inputs, level=50), whole[50])
        assert torch.equal(model(**inputs, level=50), whole[50])


@pytest.mark.parametrize("rate", [-0.1, 1.0])
def test_rates_are_shares(rate):
    with pytest.raises(InputError, match="dropout of head: expected a rate from 0 to below 1"):
        Dropout(head=rate)
