"""A fresh head's weights depend on the seed alone, and are stored under names that do not change."""

import pytest
import torch

from elasticlm import ElasticModel


@pytest.mark.parametrize(("task", "labels", "outputs"), [("score", None, 1), ("classify", ["no", "maybe", "yes"], 3)])
def test_a_fresh_head_is_drawn_as_bert_draws_it(tiny_artifact, task, labels, outputs):
    model = ElasticModel.from_pretrained(tiny_artifact)
    headed = model.with_head(task, labels, seed=3)
    weights = headed.state_dict()
    drawn = torch.randn(outputs, 32, generator=torch.Generator().manual_seed(3)) * model.config.initializer_range
    assert torch.equal(weights["head.weight"], drawn)
    assert torch.equal(weights["head.bias"], torch.zeros(outputs))
    assert set(weights) - set(model.state_dict()) == {"head.weight", "head.bias"}
    again = headed.with_head(task, labels, seed=4).state_dict()
    assert not torch.equal(again["head.weight"], drawn), "the old head is replaced"
