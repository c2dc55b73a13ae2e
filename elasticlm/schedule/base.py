"""What all policies share: their protocol, and the parts of those that have a latency budget."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

from elasticlm.model.structure import Choice
from elasticlm.schedule.load import Load
from elasticlm.schedule.table import ChoiceT, Table
from elasticlm.schedule.triage import Triage


class Policy(Protocol):
    """Chooses a level for each batch from the load of that batch, without any state.

    Attributes:
        budget_ms: T, the latency budget that the policy plans with; None if it has no budget.
    """

    @property
    def budget_ms(self) -> float | None: ...

    def choose(self, table: Table[ChoiceT], load: Load, found: Triage) -> ChoiceT:
        """Return the level of a batch; ``load`` is without the requests that are refused."""

    def check(self, levels: Sequence[Choice]) -> None:
        """Raise InputError unless the policy can choose among these levels."""

    def smallest(self, levels: Sequence[ChoiceT]) -> ChoiceT:
        """Return the smallest of these levels (largest first) that the policy can choose."""

    def settings(self) -> dict[str, str | float]:
        """Return the policy as settings of an archive: ``policy``, and its parameters by the names of the settings."""


@dataclass(frozen=True)
class WithBudget:
    """A policy that can choose any level, and whose first setting is T."""

    name: ClassVar[str]

    budget_ms: float

    def choose(self, table: Table[ChoiceT], load: Load, found: Triage) -> ChoiceT:
        """See Policy."""
        raise NotImplementedError

    def check(self, levels: Sequence[Choice]) -> None:
        """Any levels will do."""

    def smallest(self, levels: Sequence[ChoiceT]) -> ChoiceT:
        return levels[-1]

    def settings(self) -> dict[str, str | float]:
        return {"policy": self.name, "latency_budget_ms": self.budget_ms}

    def __str__(self) -> str:
        return f"{self.name}:t={self.budget_ms:g}"


def largest(table: Table[ChoiceT], fits: Callable[[ChoiceT], bool]) -> ChoiceT:
    """Return the largest level that fits; the smallest if none does, because a late answer is better than none."""
    return next((level for level in table.levels[:-1] if fits(level)), table.levels[-1])
