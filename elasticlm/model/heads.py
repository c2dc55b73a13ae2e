"""The head of a task, which turns hidden states into vectors, scores or logits.

The tasks "score" and "classify" have one linear layer on the hidden state of the first token, stored in an artifact as
``head.weight`` and ``head.bias``. The task "embed" has no weights of its own: hidden states are pooled.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from elasticlm.model.configuration import ElasticConfig

HEAD_PREFIX = "head."
"""The names of a head's weights in an artifact begin with this."""


def make_head(config: ElasticConfig) -> nn.Linear | None:
    """Make the head of a model with this configuration; None where its task needs none."""
    outputs = _outputs(config)
    return nn.Linear(config.hidden_size, outputs) if outputs else None


def fresh_weights(config: ElasticConfig, *, seed: int) -> dict[str, Tensor]:
    """Draw the weights of a new head as BERT's are, with bias 0; by their names in an artifact."""
    random = torch.Generator().manual_seed(seed)
    shape = (_outputs(config), config.hidden_size)
    weight = torch.randn(shape, generator=random) * config.initializer_range
    return {f"{HEAD_PREFIX}weight": weight, f"{HEAD_PREFIX}bias": torch.zeros(shape[0])}


def pool(config: ElasticConfig, hidden: Tensor, attention_mask: Tensor) -> Tensor:
    """Pool hidden states [batch, tokens, dim] to vectors [batch, dim], normalised where the model says so."""
    if config.pooling == "cls":
        pooled = hidden[:, 0]
    else:
        weights = attention_mask.unsqueeze(-1).to(hidden.dtype)
        pooled = (hidden * weights).sum(1) / weights.sum(1).clamp(min=1e-9)
    return F.normalize(pooled, dim=-1) if config.normalize else pooled


def finish(config: ElasticConfig, head: nn.Linear | None, hidden: Tensor, attention_mask: Tensor) -> Tensor:
    """Turn hidden states [batch, tokens, dim] into what the task answers.

    embed: vectors [batch, dim]; score: [batch]; classify: logits [batch, labels], both from the first token.
    """
    if head is None:
        return pool(config, hidden, attention_mask)
    logits: Tensor = head(hidden[:, 0])
    return logits.squeeze(-1) if config.task == "score" else logits


def _outputs(config: ElasticConfig) -> int:
    """How many outputs the head of a task has; 0: it has none."""
    return {"embed": 0, "score": 1, "classify": len(config.labels)}[config.task]
