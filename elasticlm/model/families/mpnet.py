"""MPNet: BERT's layers, positions counted from the padding word on, a bias for relative positions (Song et al. 2020).

The encoder has one table [buckets of distances, heads], which all layers share. Here each layer has its own copy, in
the order in which its own heads are ranked. It is a buffer: training leaves it as it is, so that it stays shared.
"""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from elasticlm.model.configuration import ElasticConfig
from elasticlm.model.families.base import UNIT_AXES, HeadLayers
from elasticlm.model.families.post_norm import BERT_DROPOUT, HIDDEN, PostNormFamily, SummedEmbeddings
from elasticlm.model.prefix_layers import Rotary, SelfAttention

if TYPE_CHECKING:
    from elasticlm.backend.onnx_graph import GraphBuilder, Hidden

BUCKETS = 32
"""Fixed in its code, whatever the configuration says."""
FARTHEST = 128
"""From this distance on all are in one bucket."""
SHARED_BIAS = "encoder.encoder.relative_attention_bias.weight"


def buckets_of(distances: Tensor) -> Tensor:
    """Number the buckets of distances, position of the key less that of the query (as in T5; Raffel et al. 2020).

    Distances below 8 have a bucket each, others share logarithmic ones; keys behind the query have the second half.
    """
    half, single = BUCKETS // 2, BUCKETS // 4
    far = distances.abs()
    logarithm = torch.log(far.clamp(min=1).float() / single) / math.log(FARTHEST / single)
    grouped = (single + (logarithm * (half - single)).long()).clamp(max=half - 1)
    return (distances > 0) * half + torch.where(far < single, far, grouped)


class RelativeAttention(SelfAttention):
    """Attention with a bias for each head and bucket of distances, added to the logits."""

    position_bias: Tensor

    def __init__(self, hidden_size: int, head_size: int, heads: int) -> None:
        super().__init__(hidden_size, head_size, heads)
        self.register_buffer("position_bias", torch.zeros(BUCKETS, heads))

    def forward(
        self, x_btd: Tensor, mask: Any, heads: int, rotary: Rotary | None = None, *, dropout: float = 0.0
    ) -> Tensor:
        """Return [batch, tokens, dim]; ``mask``: buckets [tokens, tokens] and, if there is padding, the mask of it."""
        buckets, real = mask
        bias = self.position_bias[:, :heads][buckets].permute(2, 0, 1)[None]
        added = bias if real is None else bias.masked_fill(~real, -torch.inf)
        return super().forward(x_btd, added, heads, dropout=dropout)


class MPNet(PostNormFamily):
    """MPNet (all-mpnet-base-v2, multi-qa-mpnet)."""

    name = "mpnet"
    prefix = "MPNet"
    load_options = {"add_pooling_layer": False}
    supported = {"relative_attention_num_buckets": (BUCKETS,)}
    weight_names = [
        ("embeddings.word_embeddings", "embeddings.word"),
        ("embeddings.position_embeddings", "embeddings.position"),
        ("embeddings.LayerNorm", "embeddings.norm"),
        ("encoder.layer.", "layers."),
        ("attention.attn.q.", "attention.query."),
        ("attention.attn.k.", "attention.key."),
        ("attention.attn.v.", "attention.value."),
        ("attention.attn.o.", "attention.output."),
        ("attention.LayerNorm", "attention_norm"),
        ("intermediate.dense", "feed_forward.up"),
        ("output.dense", "feed_forward.down"),
        ("output.LayerNorm", "feed_forward_norm"),
    ]
    uses_token_types = False
    positions_after_padding = True
    dropout_fields = BERT_DROPOUT | {"summary": HIDDEN}
    unit_axes = UNIT_AXES | {"attention.position_bias": ("head", 1)}

    def padding(self, own: Any) -> int:
        return 1  # fixed in its code

    def head_layers(self, theirs: Any) -> HeadLayers:
        return HeadLayers("classifier.dense", "classifier.out_proj")

    def lm_head(self, theirs: Any) -> Callable[[Tensor], Tensor]:
        return theirs.lm_head

    def elastic_weights(self, theirs: nn.Module) -> dict[str, Tensor]:
        weights = super().elastic_weights(theirs)
        shared = weights.pop(SHARED_BIAS)
        layers = range(cast(Any, theirs).config.num_hidden_layers)
        return weights | {f"encoder.layers.{i}.attention.position_bias": shared.clone() for i in layers}

    def attention(self, config: ElasticConfig, heads: int) -> RelativeAttention:
        return RelativeAttention(config.hidden_size, config.head_size, heads)

    def context(self, encoder: nn.Module, tokens: int, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        positions = torch.arange(tokens, device=cast(SummedEmbeddings, encoder.embeddings).word.weight.device)
        return buckets_of(positions[None, :] - positions[:, None]), mask

    def onnx_context(self, graph: "GraphBuilder", encoder: nn.Module) -> str:
        """Distances [tokens, tokens] between a query and a key, cut to those that differ, from 0 on."""
        positions = graph.positions()
        distances = graph.node("Sub", graph.node("Unsqueeze", positions, graph.constant(np.array([0]))),
                               graph.node("Unsqueeze", positions, graph.constant(np.array([1]))))  # fmt: skip
        cut = graph.node("Clip", distances, *(graph.constant(np.array(end)) for end in (-FARTHEST, FARTHEST)))
        return graph.node("Add", cut, graph.constant(np.array(FARTHEST)))

    def onnx_attention(
        self, graph: "GraphBuilder", hidden: "Hidden", context: str, block: SelfAttention, heads: int
    ) -> str:
        own = cast(RelativeAttention, block)
        buckets = buckets_of(torch.arange(-FARTHEST, FARTHEST + 1))
        by_distance = own.position_bias[:, :heads][buckets].T.contiguous().numpy()
        bias = graph.node("Gather", graph.constant(by_distance), context, axis=1) if heads else ""
        bias = graph.node("Unsqueeze", bias, graph.constant(np.array([0]))) if heads else ""
        return graph.attention(hidden, own, heads, lacking=hidden.bias, logit_bias=bias)
