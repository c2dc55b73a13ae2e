"""What a policy needs to know of service times."""

from typing import Protocol, TypeVar

ChoiceT = TypeVar("ChoiceT")


class Table(Protocol[ChoiceT]):
    """Levels, best first, with their service times: a LatencyTable, or a PairTable for a two-stage pipeline."""

    @property
    def levels(self) -> tuple[ChoiceT, ...]: ...

    def mean_ms(self, level: ChoiceT, rows: float = ..., tokens: float | None = ...) -> float: ...

    def p95_ms(self, level: ChoiceT, rows: float = ..., tokens: float | None = ...) -> float: ...
