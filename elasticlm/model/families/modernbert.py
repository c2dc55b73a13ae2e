"""ModernBERT: pre-norm, rotary positions, gated neurons, local attention in most layers (Warner et al. 2024)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from elasticlm.model.configuration import ElasticConfig
from elasticlm.model.dropout import NO_DROPOUT, Dropout, drop, drop_block
from elasticlm.model.families import rotary
from elasticlm.model.families.base import EncoderFamily, HeadLayers, OnnxUnits
from elasticlm.model.prefix_layers import FeedForward, Rotary, SelfAttention

if TYPE_CHECKING:
    from elasticlm.backend.onnx_graph import GraphBuilder, Hidden

LOCAL = "sliding_attention"
GLOBAL = "full_attention"
"""Kinds of layers: a token attends to all others, or to those at most ``local_attention`` / 2 tokens away."""
NEVER = -1e9
"""Added to the logits of tokens that are too far away."""


@dataclass(frozen=True)
class Context:
    """What the layers of one kind share: the mask of their attention, and the rotation of queries and keys."""

    mask: Tensor | None
    rotary: Rotary


class ModernBertEmbeddings(nn.Module):
    """Word embeddings and a norm; also what the layers' attention needs.

    Attributes:
        reach: how many tokens away local attention sees.
        frequencies: of the rotary positions, by the kind of layer.
    """

    def __init__(self, own: Any) -> None:
        super().__init__()
        self.word = nn.Embedding(own.vocab_size, own.hidden_size, padding_idx=own.pad_token_id)
        self.norm = nn.LayerNorm(own.hidden_size, eps=own.norm_eps, bias=own.norm_bias)
        self.reach = own.sliding_window
        head_size = own.hidden_size // own.num_attention_heads
        self.frequencies = {kind: rotary.frequencies(rotary.base_of(own.rope_parameters[kind]), head_size)
                            for kind in (GLOBAL, LOCAL)}  # fmt: skip

    def forward(self, input_ids: Tensor, token_type_ids: Tensor | None, *, dropout: float = 0.0) -> Tensor:
        """Return [batch, tokens, dim]; ``dropout``: rate behind the norm."""
        return drop(self.norm(self.word(input_ids)), dropout)


class PreNormLayer(nn.Module):
    """One Transformer layer (pre-norm), run on a prefix of its units.

    Attributes:
        kind: LOCAL or GLOBAL.
    """

    def __init__(self, own: Any, index: int, heads: int, neurons: int) -> None:
        super().__init__()
        dim, head_size = own.hidden_size, own.hidden_size // own.num_attention_heads
        self.kind = own.layer_types[index]
        self.attention_norm = _norm(own) if index else nn.Identity()  # the embeddings' norm stands before the first
        self.attention = SelfAttention(dim, head_size, heads, bias=own.attention_bias)
        self.feed_forward_norm = _norm(own)
        self.feed_forward = FeedForward(dim, neurons, own.hidden_activation, bias=own.mlp_bias, gated=True)

    def forward(
        self,
        x_btd: Tensor,
        context: dict[str, Context],
        *,
        heads: int,
        neurons: int,
        dropout: Dropout = NO_DROPOUT,
    ) -> Tensor:
        """Return [batch, tokens, dim]; ``context``: by the kind of layer."""
        own = context[self.kind]
        added = self.attention(self.attention_input(x_btd), own.mask, heads, own.rotary, dropout=dropout.attention)
        x_btd = x_btd + drop_block(added, dropout.attention_output, x_btd)
        added = self.feed_forward(self.feed_forward_norm(x_btd), neurons, dropout=dropout.neurons)
        return x_btd + drop_block(added, dropout.feed_forward_output, x_btd)

    def attention_input(self, x_btd: Tensor) -> Tensor:
        """What the attention sees of the hidden states that the layer takes in."""
        return self.attention_norm(x_btd)


class ModernBert(EncoderFamily):
    """ModernBERT (modernbert-embed, gte-modernbert)."""

    name = "modernbert"
    prefix = "ModernBert"
    complete = ("embeddings.", "layers.", "final_norm.")
    field_names = {"hidden_act": "hidden_activation"}
    weight_names = [
        ("embeddings.tok_embeddings", "embeddings.word"),
        ("final_norm", "final"),
        ("attn_norm", "attention_norm"),
        ("mlp_norm", "feed_forward_norm"),
        ("attn.Wo", "attention.output"),
        ("mlp.Wo", "feed_forward.down"),
    ]
    dropout_fields = {
        "embeddings": ("embedding_dropout",),
        "attention": ("attention_dropout",),
        "attention_output": ("attention_dropout",),
        "neurons": ("mlp_dropout",),
        "head": ("classifier_dropout",),
    }
    uses_token_types = False

    def config_fields(self, theirs: Any) -> dict[str, Any]:
        for parameters in theirs.rope_parameters.values():
            rotary.base_of(parameters)  # raises InputError
        return super().config_fields(theirs)

    def elastic_weights(self, theirs: nn.Module) -> dict[str, Tensor]:
        weights: dict[str, Tensor] = {}
        for name, weight in super().elastic_weights(theirs).items():
            if "attn.Wqkv" in name:
                parts = dict(zip(("query", "key", "value"), weight.chunk(3), strict=True))
                weights |= {name.replace("attn.Wqkv", f"attention.{part}"): own for part, own in parts.items()}
            elif "mlp.Wi" in name:
                parts = dict(zip(("up", "gate"), weight.chunk(2), strict=True))
                weights |= {name.replace("mlp.Wi", f"feed_forward.{part}"): own for part, own in parts.items()}
            else:
                weights[name] = weight
        return weights

    def head_layers(self, theirs: Any) -> HeadLayers:
        return HeadLayers("head.dense", "classifier", "head.norm", activation=theirs.classifier_activation,
                          pooling=theirs.classifier_pooling)  # fmt: skip

    def lm_head(self, theirs: Any) -> Callable[[Tensor], Tensor]:
        return lambda hidden: theirs.decoder(theirs.head(hidden))

    def embeddings(self, config: ElasticConfig) -> ModernBertEmbeddings:
        return ModernBertEmbeddings(self.own_config(config))

    def layer(self, config: ElasticConfig, index: int, heads: int, neurons: int) -> PreNormLayer:
        return PreNormLayer(self.own_config(config), index, heads, neurons)

    def final(self, config: ElasticConfig) -> nn.LayerNorm:
        return _norm(self.own_config(config))

    def context(self, encoder: nn.Module, tokens: int, mask: Tensor | None) -> dict[str, Context]:
        own = cast(ModernBertEmbeddings, encoder.embeddings)
        weight = own.word.weight
        positions = torch.arange(tokens, device=weight.device)
        near = mask
        if tokens > own.reach + 1:
            near = (positions[None, :] - positions[:, None]).abs() <= own.reach
            near = near if mask is None else near & mask
        return {kind: Context(allowed, rotary.tables(own.frequencies[kind], tokens, weight))
                for kind, allowed in ((GLOBAL, mask), (LOCAL, near))}  # fmt: skip

    def embedding_sum(self, embeddings: nn.Module) -> Callable[[np.ndarray, np.ndarray | None], np.ndarray]:
        word = cast(ModernBertEmbeddings, embeddings).word.weight.detach().numpy()
        return lambda ids, types: np.take(word, ids, axis=0)

    def onnx_input(self, graph: "GraphBuilder", name: str, embeddings: nn.Module) -> "Hidden":
        return graph.plain(graph.normalise(name, cast(ModernBertEmbeddings, embeddings).norm))

    def onnx_context(self, graph: "GraphBuilder", encoder: nn.Module) -> dict[str, tuple[str, tuple[str, str]]]:
        """By the kind of layer: what is added to the logits, and cosine and sine [tokens, head_size / 2]."""
        own = cast(ModernBertEmbeddings, encoder.embeddings)
        positions = graph.node("Cast", graph.positions(), to=graph.FLOAT)
        column, row = (graph.node("Unsqueeze", positions, graph.constant(np.array([axis]))) for axis in (1, 0))
        distances = graph.node("Abs", graph.node("Sub", row, column))
        far = graph.node("Greater", distances, graph.constant(np.array(own.reach, np.float32)))
        bias = graph.node("Where", far, *(graph.constant(np.array(value, np.float32)) for value in (NEVER, 0)))
        bias = graph.node("Unsqueeze", bias, graph.constant(np.array([0, 1])))
        return {kind: (added, rotary.onnx_tables(graph, own.frequencies[kind]))
                for kind, added in ((GLOBAL, ""), (LOCAL, bias))}  # fmt: skip

    def onnx_layer(
        self, graph: "GraphBuilder", hidden: "Hidden", context: Any, layer: nn.Module, kept: OnnxUnits
    ) -> "Hidden":
        own = cast(PreNormLayer, layer)
        bias, rotation = context[own.kind]
        if kept.heads:
            first = isinstance(own.attention_norm, nn.Identity)
            normed = hidden if first else graph.normalise(hidden.name, cast(nn.LayerNorm, own.attention_norm))
            hidden = graph.add(
                hidden, graph.attention(normed, own.attention, kept.heads, logit_bias=bias, rotary=rotation)
            )
        normed = graph.normalise(hidden.name, own.feed_forward_norm)
        return graph.add(hidden, graph.feed_forward(normed, own.feed_forward, kept))

    def onnx_output(self, graph: "GraphBuilder", hidden: "Hidden", final: nn.Module) -> "Hidden":
        return graph.normalise(hidden.name, cast(nn.LayerNorm, final))


def _norm(own: Any) -> nn.LayerNorm:
    return nn.LayerNorm(own.hidden_size, eps=own.norm_eps, bias=own.norm_bias)
