"""Attention and feed-forward blocks that run on a prefix of their units.

A block stores its heads and neurons in rank order, so the weights of a smaller level are views
``weight[:h * head_size]`` and ``weight[:, :f]`` of the largest level's: no masks and no copies. How many units to run
is an argument; the modules hold no active level, and two threads can run two levels at once.
"""

from torch import Tensor, nn
from torch.nn import functional as F
from transformers.activations import ACT2FN


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
        """Return [batch, tokens, dim]; with 0 heads the output's bias alone."""
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
        """Return [batch, tokens, dim]; with 0 neurons the output's bias alone."""
        if neurons == 0:
            return self.down.bias
        y = self.activation(F.linear(x_btd, self.up.weight[:neurons], self.up.bias[:neurons]))
        return F.linear(y, self.down.weight[:, :neurons], self.down.bias)
