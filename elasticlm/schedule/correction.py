"""A latency table that corrects itself: service times are scaled by how long batches really take.

A table is measured on an idle machine. Under load, with busy neighbours or a lowered clock rate, batches take longer.
"""

import math
from typing import Generic

from elasticlm.schedule.table import ChoiceT, Table

LEAST, MOST = 0.5, 4.0
"""Bounds of the ratio: beyond them, the table is wrong in another way than by a factor."""
WEIGHT = 0.1
"""Weight of a new batch in the mean of the ratio's logarithm."""
LONGEST_PAUSE = 8.0
"""A batch counts as at most this many times its expected time, so that a single pause changes little."""


class TableRatio:
    """The moving ratio of measured to expected service time (a geometric mean) of one worker.

    >>> ratio = TableRatio()
    >>> for _ in range(100):
    ...     ratio.add(measured_ms=20.0, expected_ms=10.0)
    >>> round(ratio.value, 3)
    2.0
    """

    def __init__(self) -> None:
        self._log = 0.0

    def add(self, measured_ms: float, expected_ms: float) -> None:
        """Record a batch."""
        if measured_ms > 0 and expected_ms > 0:
            ratio = min(max(measured_ms / expected_ms, 1 / LONGEST_PAUSE), LONGEST_PAUSE)
            self._log += WEIGHT * (math.log(ratio) - self._log)

    @property
    def value(self) -> float:
        """The ratio, between LEAST and MOST."""
        return min(max(math.exp(self._log), LEAST), MOST)


class ScaledTable(Generic[ChoiceT]):
    """A table whose service times are multiplied by a ratio."""

    def __init__(self, table: Table[ChoiceT], ratio: float) -> None:
        self._table, self._ratio = table, ratio

    @property
    def levels(self) -> tuple[ChoiceT, ...]:
        return self._table.levels

    def mean_ms(self, level: ChoiceT, rows: float = 1, tokens: float | None = None) -> float:
        return self._ratio * self._table.mean_ms(level, rows, tokens)

    def p95_ms(self, level: ChoiceT, rows: float = 1, tokens: float | None = None) -> float:
        return self._ratio * self._table.p95_ms(level, rows, tokens)
