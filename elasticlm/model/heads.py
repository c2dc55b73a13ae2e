"""The head of a task, which turns hidden states into vectors, scores or logits.

The tasks "score" and "classify" have a head: a linear layer on the hidden state of the first token, stored in an
artifact as ``head.weight`` and ``head.bias``, or that of a Hugging Face model, with its pooler (``head.pooler.*``,
perhaps ``head.norm.*``, ``head.output.*``). The task "embed" pools hidden states; Dense modules may follow
(``dense.0.*``, ...).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.activations import ACT2FN

from elasticlm.model.configuration import DenseLayer, ElasticConfig
from elasticlm.model.dropout import NO_DROPOUT, Dropout, drop

HEAD_PREFIX = "head."
"""The names of a head's weights in an artifact begin with this."""
DENSE_PREFIX = "dense."
"""The names of the Dense modules' weights in an artifact begin with this."""


class Dense(nn.Linear):
    """A linear layer after pooling and its activation."""

    def __init__(self, layer: DenseLayer) -> None:
        super().__init__(layer.in_features, layer.out_features, bias=layer.bias)
        self.activation = ACT2FN[layer.activation]

    def forward(self, input: Tensor) -> Tensor:
        """Return [batch, out_features]."""
        return self.activation(super().forward(input))


class PoolerHead(nn.Module):
    """A dense layer with an activation, perhaps a norm, then a linear layer: that of sequence classification models.

    Args:
        norm_eps: of the norm; None: there is none.
    """

    def __init__(self, hidden_size: int, outputs: int, activation: str, norm_eps: float | None) -> None:
        super().__init__()
        self.pooler = nn.Linear(hidden_size, hidden_size)
        self.activation = ACT2FN[activation]
        self.norm = nn.Identity() if norm_eps is None else nn.LayerNorm(hidden_size, eps=norm_eps)
        self.output = nn.Linear(hidden_size, outputs)

    def forward(self, summary: Tensor, dropout: Dropout = NO_DROPOUT) -> Tensor:
        """Return [batch, outputs] for what summary() gives, [batch, dim]."""
        pooled = self.norm(self.activation(self.pooler(drop(summary, dropout.summary))))
        return self.output(drop(pooled, dropout.head))


class LinearHead(nn.Linear):
    """One linear layer."""

    def forward(self, input: Tensor, dropout: Dropout = NO_DROPOUT) -> Tensor:
        """Return [batch, outputs] for what summary() gives, [batch, dim]."""
        return super().forward(drop(input, dropout.head))


def make_head(config: ElasticConfig) -> nn.Module | None:
    """Make the head of a model with this configuration; None where its task needs none."""
    outputs = _outputs(config)
    if not outputs:
        return None
    if config.head.kind == "pooler":
        return PoolerHead(config.hidden_size, outputs, config.head.activation, config.head.norm_eps)
    return LinearHead(config.hidden_size, outputs)


def fresh_weights(config: ElasticConfig, *, seed: int) -> dict[str, Tensor]:
    """Draw the weights of a new linear head as BERT's are, with bias 0; by their names in an artifact."""
    random = torch.Generator().manual_seed(seed)
    shape = (_outputs(config), config.hidden_size)
    weight = torch.randn(shape, generator=random) * config.initializer_range
    return {f"{HEAD_PREFIX}weight": weight, f"{HEAD_PREFIX}bias": torch.zeros(shape[0])}


def pool(config: ElasticConfig, dense: nn.Module, hidden: Tensor, attention_mask: Tensor) -> Tensor:
    """Pool hidden states [batch, tokens, dim] to vectors [batch, vector_size].

    Args:
        dense: the Dense modules, which run after pooling and before normalisation.
    """
    pooled = dense(_pooled(config.pooling, hidden, attention_mask))
    return F.normalize(pooled, dim=-1) if config.normalize else pooled


def summary(config: ElasticConfig, hidden: Tensor, attention_mask: Tensor) -> Tensor:
    """What a head sees of hidden states [batch, tokens, dim]: FloatTensor [batch, dim]."""
    return _pooled(config.head.pooling, hidden, attention_mask)


def score(
    config: ElasticConfig, head: nn.Module, hidden: Tensor, attention_mask: Tensor, dropout: Dropout = NO_DROPOUT
) -> Tensor:
    """Turn hidden states [batch, tokens, dim] into scores [batch], or a classifier's logits [batch, labels]."""
    logits: Tensor = head(summary(config, hidden, attention_mask), dropout)
    return logits.squeeze(-1) if config.task == "score" else logits


def _pooled(pooling: str, hidden: Tensor, attention_mask: Tensor) -> Tensor:
    if pooling == "cls":
        return hidden[:, 0]
    weights = attention_mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * weights).sum(1) / weights.sum(1).clamp(min=1e-9)


def _outputs(config: ElasticConfig) -> int:
    """How many outputs the head of a task has; 0: it has none."""
    return {"embed": 0, "score": 1, "classify": len(config.labels)}[config.task]
