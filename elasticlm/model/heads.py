"""The head of a task, which turns hidden states into vectors, scores or logits.

The tasks "score" and "classify" have a head on the hidden state of the first token: a linear layer, stored in an
artifact as ``head.weight`` and ``head.bias``, or that of a Hugging Face model, with its pooler (``head.pooler.*``,
``head.output.*``). The task "embed" pools hidden states; Dense modules may follow (``dense.0.*``, ...).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.activations import ACT2FN

from elasticlm.model.configuration import DenseLayer, ElasticConfig

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
    """A dense layer with an activation, then a linear one: the head of a sequence classification model."""

    def __init__(self, hidden_size: int, outputs: int, activation: str) -> None:
        super().__init__()
        self.pooler = nn.Linear(hidden_size, hidden_size)
        self.activation = ACT2FN[activation]
        self.output = nn.Linear(hidden_size, outputs)

    def forward(self, first: Tensor) -> Tensor:
        """Return [batch, outputs] for the hidden states of the first token [batch, dim]."""
        return self.output(self.activation(self.pooler(first)))


def make_head(config: ElasticConfig) -> nn.Module | None:
    """Make the head of a model with this configuration; None where its task needs none."""
    outputs = _outputs(config)
    if not outputs:
        return None
    if config.head.kind == "pooler":
        return PoolerHead(config.hidden_size, outputs, config.head.activation)
    return nn.Linear(config.hidden_size, outputs)


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
    if config.pooling == "cls":
        pooled = hidden[:, 0]
    else:
        weights = attention_mask.unsqueeze(-1).to(hidden.dtype)
        pooled = (hidden * weights).sum(1) / weights.sum(1).clamp(min=1e-9)
    pooled = dense(pooled)
    return F.normalize(pooled, dim=-1) if config.normalize else pooled


def score(config: ElasticConfig, head: nn.Module, hidden: Tensor) -> Tensor:
    """Turn hidden states [batch, tokens, dim] into scores [batch], or a classifier's logits [batch, labels]."""
    logits: Tensor = head(hidden[:, 0])
    return logits.squeeze(-1) if config.task == "score" else logits


def _outputs(config: ElasticConfig) -> int:
    """How many outputs the head of a task has; 0: it has none."""
    return {"embed": 0, "score": 1, "classify": len(config.labels)}[config.task]
