"""A graph has all that its family's encoder has: the layers' shared context, each layer's index, the last norm."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from elasticlm import ElasticModel
from elasticlm.backend.onnx_graph import Hidden, build_graph
from elasticlm.backend.onnx_runtime import OnnxBackend
from elasticlm.model.families import FAMILIES
from elasticlm.model.families.bert import Bert
from elasticlm.model.families.post_norm import PostNormLayer
from elasticlm.model.structure import level_name

TEXTS = ["how does ice form", "glacier", "the sun and the moon and the sea"]
SHIFT = torch.linspace(-1, 1, 32)


class ShiftedLayer(PostNormLayer):
    """Adds a vector that all layers share to its input, as often as its index says."""

    index: int

    def forward(self, x_btd, context, **options):
        shift, mask = context
        return super().forward(x_btd + self.index * shift, mask, **options)


class ShiftedBert(Bert):
    """BERT with shifted layers and a last norm."""

    name = "shifted"
    contexts_made = 0

    def layer(self, config, index, heads, neurons):
        layer = super().layer(config, index, heads, neurons)
        layer.__class__, layer.index = ShiftedLayer, index
        return layer

    def final(self, config):
        return nn.LayerNorm(config.hidden_size)

    def context(self, encoder, tokens, mask):
        return SHIFT, mask

    def onnx_context(self, graph, encoder):
        self.contexts_made += 1
        return graph.constant(SHIFT.numpy())

    def onnx_layer(self, graph, hidden, context, layer, kept):
        times = graph.constant(np.array(layer.index, np.float32))
        shifted = graph.node("Add", hidden.name, graph.node("Mul", context, times))
        return super().onnx_layer(graph, Hidden(shifted, hidden.bias), None, layer, kept)

    def onnx_output(self, graph, hidden, final):
        return graph.normalise(graph.node("Add", hidden.name, graph.constant(hidden.bias.numpy())), final)


@pytest.fixture
def model(tiny_artifact, monkeypatch):
    plain = ElasticModel.from_pretrained(tiny_artifact)
    monkeypatch.setitem(FAMILIES, "shifted", ShiftedBert())
    config = copy.deepcopy(plain.config)
    config.family = "shifted"
    shifted = ElasticModel(config, plain.tokenizer)
    missing, unexpected = shifted.load_state_dict(plain.state_dict(), strict=False)
    assert (sorted(missing), unexpected) == (["encoder.final.bias", "encoder.final.weight"], [])
    with torch.no_grad():
        for weight in shifted.encoder.final.parameters():
            weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)))
    return shifted


def test_graphs_have_the_familys_context_index_and_output(model, tmp_path):
    for level in model.levels:
        graph = build_graph(model.encoder, model.structures[level], model.config.hidden_act)
        (tmp_path / f"{level_name(level)}.onnx").write_bytes(graph.SerializeToString())
    assert model.encoder.family.contexts_made == len(model.levels), "one context per graph"
    backend = OnnxBackend(tmp_path, model.encoders, precision="fp32", threads=1)
    inputs = model.tokenize(TEXTS)
    real = inputs["attention_mask"].bool()
    for level in model.levels:
        max_diff = (backend.hidden(inputs, level) - model.backend.hidden(inputs, level))[real].abs().max()
        assert max_diff < 1e-5, (level, max_diff)
