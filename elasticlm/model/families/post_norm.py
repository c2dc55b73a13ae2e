"""What most encoders share: summed embeddings, layers with biases and a norm behind each block (post-norm)."""

from abc import ABC
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np
from torch import Tensor, nn

from elasticlm.model.configuration import ElasticConfig
from elasticlm.model.dropout import NO_DROPOUT, Dropout, drop, drop_block
from elasticlm.model.families.base import EncoderFamily, OnnxUnits
from elasticlm.model.prefix_layers import FeedForward, SelfAttention

if TYPE_CHECKING:
    from elasticlm.backend.onnx_graph import GraphBuilder, Hidden


HIDDEN = ("hidden_dropout_prob",)
BERT_DROPOUT = {
    "embeddings": HIDDEN,
    "attention": ("attention_probs_dropout_prob",),
    "attention_output": HIDDEN,
    "feed_forward_output": HIDDEN,
    "head": ("classifier_dropout", *HIDDEN),
}
"""Where BERT drops values: see EncoderFamily.dropout_fields."""


class SummedEmbeddings(nn.Module):
    """Word embeddings, and position and token type embeddings where there are any, summed and normalised.

    They are projected where the encoder has another width.

    Attributes:
        padding: where positions count from this word on, as in RoBERTa: the n-th word that is not padding has position
            ``padding`` + n, and padding itself ``padding``. None: positions count from 0.
    """

    def __init__(
        self, *, words: int, positions: int, types: int, width: int, dim: int, eps: float, pad: int, after_padding: bool
    ) -> None:
        super().__init__()
        self.word = nn.Embedding(words, width, padding_idx=pad)
        self.position = nn.Embedding(positions, width) if positions else None
        self.token_type = nn.Embedding(types, width) if types else None
        self.norm = nn.LayerNorm(width, eps=eps)
        self.projection = nn.Linear(width, dim) if width != dim else None
        self.padding = pad if after_padding else None

    def forward(self, input_ids: Tensor, token_type_ids: Tensor | None, *, dropout: float = 0.0) -> Tensor:
        """Return [batch, tokens, dim]; token types None stand for all 0; ``dropout``: rate behind the norm."""
        total = self.word(input_ids)
        if self.token_type is not None:
            total = total + (self.token_type.weight[0] if token_type_ids is None else self.token_type(token_type_ids))
        if self.position is not None:
            total = total + self._positions(self.position, input_ids)
        total = drop(self.norm(total), dropout)
        return total if self.projection is None else self.projection(total)

    def _positions(self, table: nn.Embedding, input_ids: Tensor) -> Tensor:
        tokens = input_ids.shape[1]
        if self.padding is None:
            return table.weight[:tokens]
        real = input_ids != self.padding
        if bool(real.all()):
            return table.weight[self.padding + 1 : self.padding + 1 + tokens]
        return table(real.cumsum(1) * real + self.padding)


class PostNormLayer(nn.Module):
    """One Transformer layer (post-norm), run on a prefix of its units."""

    def __init__(self, attention: SelfAttention, feed_forward: FeedForward, dim: int, eps: float) -> None:
        super().__init__()
        self.attention = attention
        self.attention_norm = nn.LayerNorm(dim, eps=eps)
        self.feed_forward = feed_forward
        self.feed_forward_norm = nn.LayerNorm(dim, eps=eps)

    def forward(
        self, x_btd: Tensor, context: Any, *, heads: int, neurons: int, dropout: Dropout = NO_DROPOUT
    ) -> Tensor:
        """Return [batch, tokens, dim]; ``context`` is what the attention takes, such as its mask."""
        added = self.attention(x_btd, context, heads, dropout=dropout.attention)
        x_btd = self.attention_norm(x_btd + drop_block(added, dropout.attention_output, x_btd))
        added = self.feed_forward(x_btd, neurons, dropout=dropout.neurons)
        return self.feed_forward_norm(x_btd + drop_block(added, dropout.feed_forward_output, x_btd))

    def attention_input(self, x_btd: Tensor) -> Tensor:
        """What the attention sees of the hidden states that the layer takes in."""
        return x_btd


class PostNormFamily(EncoderFamily, ABC):
    """A family of such encoders. What follows are the ways in which they differ."""

    dropout_fields = BERT_DROPOUT
    positions_after_padding: ClassVar[bool] = False
    """Whether positions count from the padding word on, see SummedEmbeddings."""

    def eps(self, own: Any) -> float:
        """The epsilon of the norms, by the family's own configuration."""
        return own.layer_norm_eps

    def padding(self, own: Any) -> int:
        """The word that is padding, by the family's own configuration."""
        return own.pad_token_id

    def attention(self, config: ElasticConfig, heads: int) -> SelfAttention:
        """Make the attention of a layer."""
        return SelfAttention(config.hidden_size, config.head_size, heads)

    def feed_forward(self, config: ElasticConfig, neurons: int) -> FeedForward:
        """Make the feed-forward network of a layer."""
        return FeedForward(config.hidden_size, neurons, config.hidden_act)

    def longest(self, config: ElasticConfig) -> int:
        taken = 1 + self.padding(self.own_config(config)) if self.positions_after_padding else 0
        return config.max_position_embeddings - taken

    def embeddings(self, config: ElasticConfig) -> SummedEmbeddings:
        own = self.own_config(config)
        return SummedEmbeddings(
            words=config.vocab_size,
            positions=config.max_position_embeddings,
            types=getattr(own, "type_vocab_size", 0),
            width=getattr(own, "embedding_size", config.hidden_size),
            dim=config.hidden_size,
            eps=self.eps(own),
            pad=self.padding(own),
            after_padding=self.positions_after_padding,
        )

    def layer(self, config: ElasticConfig, index: int, heads: int, neurons: int) -> PostNormLayer:
        eps = self.eps(self.own_config(config))
        attention, feed_forward = self.attention(config, heads), self.feed_forward(config, neurons)
        return PostNormLayer(attention, feed_forward, config.hidden_size, eps)

    def context(self, encoder: nn.Module, tokens: int, mask: Tensor | None) -> Any:
        return mask

    def embedding_sum(self, embeddings: nn.Module) -> Callable[[np.ndarray, np.ndarray | None], np.ndarray]:
        own = cast(SummedEmbeddings, embeddings)
        word = own.word.weight.detach().numpy()
        position, token_type = (None if table is None else table.weight.detach().numpy()
                                for table in (own.position, own.token_type))  # fmt: skip

        def summed(ids: np.ndarray, types: np.ndarray | None) -> np.ndarray:
            total = np.take(word, ids, axis=0)
            if position is not None:
                total += _positions(position, ids, own.padding)
            if token_type is not None:
                total += token_type[0] if types is None else np.take(token_type, types, axis=0)
            return total

        return summed

    def onnx_input(self, graph: "GraphBuilder", name: str, embeddings: nn.Module) -> "Hidden":
        own = cast(SummedEmbeddings, embeddings)
        hidden = graph.normalise(name, own.norm)
        return hidden if own.projection is None else graph.project(hidden, own.projection)

    def onnx_attention(
        self, graph: "GraphBuilder", hidden: "Hidden", context: Any, block: SelfAttention, heads: int
    ) -> str:
        """Add the attention of a layer, with the bias that the hidden states still lack."""
        return graph.attention(hidden, block, heads, lacking=hidden.bias)

    def onnx_layer(
        self, graph: "GraphBuilder", hidden: "Hidden", context: Any, layer: nn.Module, kept: OnnxUnits
    ) -> "Hidden":
        own = cast(PostNormLayer, layer)
        added = self.onnx_attention(graph, hidden, context, own.attention, kept.heads)
        hidden = graph.normalise(graph.node("Add", hidden.name, added), own.attention_norm)
        added = graph.feed_forward(hidden, own.feed_forward, kept, lacking=hidden.bias)
        return graph.normalise(graph.node("Add", hidden.name, added), own.feed_forward_norm)


def _positions(table: np.ndarray, ids: np.ndarray, padding: int | None) -> np.ndarray:
    """Position embeddings, FloatArray [tokens, width] or [batch, tokens, width]: SummedEmbeddings._positions()."""
    tokens = ids.shape[1]
    if padding is None:
        return table[:tokens]
    real = ids != padding
    if real.all():
        return table[padding + 1 : padding + 1 + tokens]
    return np.take(table, real.cumsum(1) * real + padding, axis=0)
