"""Attention and feed-forward blocks that run on a prefix of their units.

A block stores its heads and neurons in rank order, so the weights of a smaller level are views
``weight[:h * head_size]`` and ``weight[:, :f]`` of the largest level's: no masks and no copies. How many units to run
is an argument; the modules hold no active level, and two threads can run two levels at once.

What the units give passes through an ``nn.Identity`` (``units``), so that hooks can see it and scale it.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.activations import ACT2FN

from elasticlm.model.dropout import drop

Rotary = tuple[Tensor, Tensor]
"""Cosine and sine of the angles by which queries and keys are rotated, FloatTensors [tokens, head_size] (RoPE)."""


class SelfAttention(nn.Module):
    """Multi-head self-attention over the first ``heads`` of its heads.

    Attributes:
        units: sees what the heads give, [batch, tokens, heads * head_size].
    """

    def __init__(self, hidden_size: int, head_size: int, heads: int, *, bias: bool = True) -> None:
        super().__init__()
        self.head_size = head_size
        self.query = nn.Linear(hidden_size, heads * head_size, bias=bias)
        self.key = nn.Linear(hidden_size, heads * head_size, bias=bias)
        self.value = nn.Linear(hidden_size, heads * head_size, bias=bias)
        self.output = nn.Linear(heads * head_size, hidden_size, bias=bias)
        self.units = nn.Identity()

    def forward(
        self, x_btd: Tensor, mask: Tensor | None, heads: int, rotary: Rotary | None = None, *, dropout: float = 0.0
    ) -> Tensor:
        """Return [batch, tokens, dim]; with 0 heads the output's bias alone.

        Args:
            mask: BoolTensor, True where attention is allowed, or FloatTensor that is added to the logits; it broadcasts
                to [batch, heads, tokens, tokens].
            dropout: rate at which attention probabilities are dropped.
        """
        if heads == 0:
            return bias_of(self.output)
        width = heads * self.head_size
        batch, tokens, _ = x_btd.shape

        def project(linear: nn.Linear) -> Tensor:  # [batch, heads, tokens, head_size]
            y = _first_rows(x_btd, linear, width)
            return y.view(batch, tokens, heads, self.head_size).transpose(1, 2)

        query, key = project(self.query), project(self.key)
        if rotary is not None:
            query, key = _rotated(query, rotary), _rotated(key, rotary)
        context = F.scaled_dot_product_attention(query, key, project(self.value), attn_mask=mask, dropout_p=dropout)
        merged = self.units(context.transpose(1, 2).reshape(batch, tokens, width))
        return F.linear(merged, self.output.weight[:, :width], self.output.bias)


class FeedForward(nn.Module):
    """Feed-forward network over the first ``neurons`` of its neurons.

    A gated neuron (GeGLU and the like; Shazeer 2020) multiplies its activation by a second product of the input, so it
    is a row of ``up`` and of ``gate``, and a column of ``down``.

    Attributes:
        units: sees what the neurons give, [batch, tokens, neurons].
    """

    def __init__(
        self, hidden_size: int, neurons: int, activation: str, *, bias: bool = True, gated: bool = False
    ) -> None:
        super().__init__()
        self.up = nn.Linear(hidden_size, neurons, bias=bias)
        self.gate = nn.Linear(hidden_size, neurons, bias=bias) if gated else None
        self.down = nn.Linear(neurons, hidden_size, bias=bias)
        self.activation = ACT2FN[activation]
        self.units = nn.Identity()

    def forward(self, x_btd: Tensor, neurons: int, *, dropout: float = 0.0) -> Tensor:
        """Return [batch, tokens, dim]; with 0 neurons the output's bias alone.

        Args:
            dropout: rate at which what the neurons give is dropped.
        """
        if neurons == 0:
            return bias_of(self.down)
        y = self.activation(_first_rows(x_btd, self.up, neurons))
        if self.gate is not None:
            y = y * _first_rows(x_btd, self.gate, neurons)
        return F.linear(drop(self.units(y), dropout), self.down.weight[:, :neurons], self.down.bias)


def bias_of(module: nn.Linear | nn.LayerNorm) -> Tensor:
    """The bias of a module; zeros where it has none."""
    if module.bias is not None:
        return module.bias
    return torch.zeros(module.weight.shape[0], dtype=module.weight.dtype, device=module.weight.device)


def _first_rows(x: Tensor, linear: nn.Linear, rows: int) -> Tensor:
    return F.linear(x, linear.weight[:rows], None if linear.bias is None else linear.bias[:rows])


def _rotated(x: Tensor, rotary: Rotary) -> Tensor:
    """Rotate pairs of entries, the i-th of the first half with the i-th of the second, [batch, heads, tokens, size]."""
    cosine, sine = rotary
    first, second = x.chunk(2, dim=-1)
    return x * cosine + torch.cat((-second, first), dim=-1) * sine
