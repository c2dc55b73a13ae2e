"""Expressive scores are what a finite difference says they are."""

import numpy as np
import pytest
import torch
from random_texts import make_texts
from torch.nn import functional as F

from elasticlm.model.teacher import load_model
from elasticlm.trainer.objectives.retrieve import contrastive_losses
from elasticlm.trainer.scores import Gates, Scores, expressive_scores, gated
from elasticlm.trainer.training_texts import TokenizedTexts


@pytest.fixture(scope="module")
def setting(tiny_bert):
    """The tiny BERT in double precision, and the contrastive loss of 6 queries as a function of rows."""
    teacher = load_model(str(tiny_bert)).double()
    texts = TokenizedTexts.of(teacher, make_texts(6, seed=3), "query")
    passages = F.normalize(torch.randn(6, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0)), dim=1)

    def losses(rows):
        queries = teacher(**texts.inputs(rows), level=100)
        return contrastive_losses(queries, passages, torch.from_numpy(rows), torch.zeros(len(rows), 6).bool(), 0.05)

    return teacher, losses


def gates_of(teacher):
    return Gates.ones(teacher.encoder, teacher.config.whole, 6)


def finite_difference(teacher, losses, rows, kind, layer, unit, step=1e-5):
    """d l_i / d gate_i of each example, with the gates of all examples moved at once (they do not meet)."""

    def at(value):
        gates = gates_of(teacher)
        with torch.no_grad():
            getattr(gates, kind)[layer][:, unit] = value
            with gated(teacher.encoder, gates):
                return losses(rows)

    return ((at(1 + step) - at(1 - step)) / (2 * step)).numpy()


@pytest.mark.parametrize(
    ("kind", "layer", "unit"), [("heads", 0, 1), ("heads", 2, 3), ("neurons", 0, 5), ("neurons", 1, 31)]
)
def test_score_equals_a_finite_difference_of_each_examples_own_loss(setting, kind, layer, unit):
    teacher, losses = setting
    rows = np.arange(6)
    expected = np.abs(finite_difference(teacher, losses, rows, kind, layer, unit)).mean()
    found = getattr(expressive_scores(teacher, [(6, rows)], losses), kind)[layer, unit]
    assert found == pytest.approx(expected, rel=1e-5)
    assert expected > 1e-3


def test_score_is_no_gradient_of_the_mean_loss(setting):
    teacher, losses = setting
    examples = finite_difference(teacher, losses, np.arange(6), "neurons", 0, 5)
    assert examples.min() < 0 < examples.max()  # they would cancel
    found = expressive_scores(teacher, [(6, np.arange(6))], losses).neurons[0, 5]
    assert found > 1.01 * abs(examples.mean())


def test_scores_do_not_depend_on_how_examples_are_batched(setting):
    teacher, losses = setting
    whole = expressive_scores(teacher, [(6, np.arange(6))], losses)
    parts = expressive_scores(teacher, [(4, np.arange(4)), (2, np.arange(4, 6))], losses)
    assert np.abs(whole.heads - parts.heads).max() < 1e-12
    assert np.abs(whole.neurons - parts.neurons).max() < 1e-12


def test_gates_of_zero_drop_a_head(setting):
    teacher, losses = setting
    gates = gates_of(teacher)
    with torch.no_grad():
        gates.heads[1][:, 2] = 0
        with gated(teacher.encoder, gates):
            found = losses(np.arange(6))
        weight = teacher.encoder.layers[1].attention.output.weight
        kept = weight[:, 16:24].clone()
        weight[:, 16:24] = 0  # heads of 8 columns
        expected = losses(np.arange(6))
        weight[:, 16:24] = kept
    assert (found - expected).abs().max() < 1e-12
    assert (found - losses(np.arange(6))).abs().max() > 1e-3


def test_normalized_scores_have_length_one_in_each_layer_and_kind():
    scores = Scores(np.array([[3.0, 4.0], [0.0, 0.0]]), np.array([[1.0, 1.0, 1.0, 1.0]] * 2)).normalized()
    assert scores.heads.tolist() == [[0.6, 0.8], [0.0, 0.0]]
    assert scores.neurons.tolist() == [[0.5] * 4] * 2
