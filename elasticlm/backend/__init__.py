"""How a level is executed. A backend has a name, a precision, a device, and one method:

hidden(inputs, level): tokenised batch -> hidden states [batch, tokens, dim], without gradients.

``torch`` runs prefix views of one set of weights; ``onnx`` runs a graph of its own a level in ONNX Runtime, faster on a
CPU, with the weights of every level held for itself.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from elasticlm.structure import Level

BACKENDS = ("torch", "onnx")
PRECISIONS = {"torch": ("fp32",), "onnx": ("fp32", "int8")}
"""What a backend's weights and products may be served in."""


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
