"""The elastic encoder: a BERT whose layers run on a prefix of their heads and neurons.

Every layer stores its heads and neurons in rank order, so level k's weights are views ``weight[:h * head_size]`` and
``weight[:, :f]`` of the largest level's: no masks, no copies. Which prefix to run goes in as an argument; the module
holds no active level, and two threads may run two levels at once.
"""

from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BertConfig
from transformers.activations import ACT2FN

from elasticlm.model.structure import Structure


class Embeddings(nn.Module):
    """Word, position and token type embeddings, summed and normalised, as BERT's."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.word = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.position = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.token_type = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, input_ids: Tensor, token_type_ids: Tensor | None) -> Tensor:
        positions = self.position.weight[: input_ids.shape[1]]
        types = self.token_type.weight[0] if token_type_ids is None else self.token_type(token_type_ids)
        return self.norm(self.word(input_ids) + positions + types)


class SelfAttention(nn.Module):
    """Multi-head self-attention over the first ``heads`` of its heads."""

    def __init__(self, hidden_size: int, head_size: int, heads: int) -> None:
        super().__init__()
        self.head_size = head_size
        self.query = nn.Linear(hidden_size, heads * head_size)
        self.key = nn.Linear(hidden_size, heads * head_size)
        self.value = nn.Linear(hidden_size, heads * head_size)
        self.output = nn.Linear(heads * head_size, hidden_size)

    def forward(self, x_btd: Tensor, mask: Tensor | None, heads: int) -> Tensor:
        if heads == 0:
            return self.output.bias
        width = heads * self.head_size
        batch, tokens, _ = x_btd.shape

        def project(linear: nn.Linear) -> Tensor:  # [batch, heads, tokens, head_size]
            y = F.linear(x_btd, linear.weight[:width], linear.bias[:width])
            return y.view(batch, tokens, heads, self.head_size).transpose(1, 2)

        context = F.scaled_dot_product_attention(
            project(self.query), project(self.key), project(self.value), attn_mask=mask
        )
        merged = context.transpose(1, 2).reshape(batch, tokens, width)
        return F.linear(merged, self.output.weight[:, :width], self.output.bias)


class FeedForward(nn.Module):
    """Feed-forward network over the first ``neurons`` of its neurons."""

    def __init__(self, hidden_size: int, neurons: int, activation: str) -> None:
        super().__init__()
        self.up = nn.Linear(hidden_size, neurons)
        self.down = nn.Linear(neurons, hidden_size)
        self.activation = ACT2FN[activation]

    def forward(self, x_btd: Tensor, neurons: int) -> Tensor:
        if neurons == 0:
            return self.down.bias
        y = self.activation(F.linear(x_btd, self.up.weight[:neurons], self.up.bias[:neurons]))
        return F.linear(y, self.down.weight[:, :neurons], self.down.bias)


class ElasticLayer(nn.Module):
    """One Transformer layer (post-norm), run on a prefix of its units."""

    def __init__(self, config: BertConfig, heads: int, neurons: int) -> None:
        super().__init__()
        head_size = config.hidden_size // config.num_attention_heads
        self.attention = SelfAttention(config.hidden_size, head_size, heads)
        self.attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.feed_forward = FeedForward(config.hidden_size, neurons, config.hidden_act)
        self.feed_forward_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, x_btd: Tensor, mask: Tensor | None, *, heads: int, neurons: int) -> Tensor:
        x_btd = self.attention_norm(x_btd + self.attention(x_btd, mask, heads))
        return self.feed_forward_norm(x_btd + self.feed_forward(x_btd, neurons))


class ElasticEncoder(nn.Module):
    """A BERT encoder of the largest structure that runs any structure nested in it.

    Args:
        config: the BERT configuration of the teacher.
        structure: the largest structure; its units are allocated, in rank order.
    """

    def __init__(self, config: BertConfig, structure: Structure) -> None:
        super().__init__()
        self.embeddings = Embeddings(config)
        self.layers = nn.ModuleList(
            ElasticLayer(config, heads, neurons)
            for heads, neurons in zip(structure.heads, structure.neurons, strict=True)
        )

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        token_type_ids: Tensor | None = None,
        *,
        structure: Structure,
        layers: int | None = None,
    ) -> Tensor:
        """Return the hidden states of the submodel ``structure``.

        Args:
            input_ids: LongTensor [batch, tokens].
            attention_mask: LongTensor [batch, tokens], 1 for tokens and 0 for padding.
            token_type_ids: LongTensor [batch, tokens], or None for all 0.
            structure: heads and neurons of each layer to run.
            layers: run the first so many layers only (None: all of them).

        Returns:
            FloatTensor [batch, tokens, dim].
        """
        hidden = self.embeddings(input_ids, token_type_ids)
        # Without padding there is nothing to mask, and attention without a mask is faster.
        mask = None if bool(attention_mask.all()) else attention_mask[:, None, None, :].bool()
        kept = zip(self.layers, structure.heads, structure.neurons, strict=True)
        for layer, heads, neurons in list(kept)[:layers]:
            hidden = layer(hidden, mask, heads=heads, neurons=neurons)
        return hidden
