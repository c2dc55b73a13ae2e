"""How a level is executed. A backend has a name, a precision, a device, and one method:

hidden(inputs, level): tokenised batch -> hidden states [batch, tokens, dim], without gradients.

``torch`` runs prefix views of one set of weights; ``onnx`` runs a graph of its own a level in ONNX Runtime, faster on a
CPU, with the weights of every level held for itself.
"""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from elasticlm.model.structure import Level

BACKENDS = ("torch", "onnx")
PRECISIONS = {"torch": ("fp32",), "onnx": ("fp32", "int8")}
"""What a backend's weights and products may be served in."""
SPLIT_FROM = 64
"""Tokens, from which on ``onnx`` runs a padded batch without its padding."""


class Backend(Protocol):
    """What runs a level."""

    @property
    def name(self) -> str: ...

    @property
    def precision(self) -> str: ...

    @property
    def device(self) -> str: ...

    def hidden(self, inputs: "Mapping[str, Tensor]", level: "Level") -> "Tensor":
        """Hidden states [batch, tokens, dim] of a tokenised batch at a level."""


def counted_tokens(backend: str, lengths: Sequence[int]) -> int:
    """Return how long each of a batch's rows is for a latency table.

    As long as the longest; or what they are on average, where the backend runs them without their padding.

    >>> counted_tokens("torch", [100, 40]), counted_tokens("onnx", [100, 40]), counted_tokens("onnx", [30, 10])
    (100, 70, 30)
    """
    longest = max(lengths)
    return math.ceil(sum(lengths) / len(lengths)) if backend == "onnx" and longest >= SPLIT_FROM else longest
