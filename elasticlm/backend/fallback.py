"""Run some levels by another backend than the others."""

from collections.abc import Mapping, Set
from typing import TYPE_CHECKING

from elasticlm.backend import Backend

if TYPE_CHECKING:
    from torch import Tensor

    from elasticlm.model.structure import Level


class FallbackBackend:
    """A backend with another one for some levels.

    It has the fallback's name, so that tokens are counted as the fallback needs them, which are never too few.
    """

    def __init__(self, usual: Backend, fallback: Backend, levels: "Set[Level]") -> None:
        self._usual, self._fallback, self._levels = usual, fallback, levels
        self.name, self.precision, self.device = fallback.name, usual.precision, usual.device

    def hidden(self, inputs: "Mapping[str, Tensor]", level: "Level") -> "Tensor":
        """Hidden states [batch, tokens, dim] of a tokenised batch at a level."""
        return (self._fallback if level in self._levels else self._usual).hidden(inputs, level)
