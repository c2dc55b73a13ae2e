"""Policies of other systems, simplified to this setting, to compare with. Each may shed as ``deadline`` does.

- ``slackfit:t=MS``: SlackFit of SuperServe (Khare et al., NSDI 2025). The level whose batch fits the time that the most
  urgent request has left. Simplified: the server forms the batches, so that only the level is chosen; SuperServe
  also chooses the batch size, by buckets of latency.
- ``switching:t=MS``: Model-Switching (Zhang et al., HotCloud 2020). The best level for the arrival rate of the last
  seconds, by thresholds with hysteresis. Simplified: thresholds are shares of each level's capacity from the latency
  table, where the paper finds them by measuring effective accuracy at each rate.
- ``demand:t=MS``: demand-driven accuracy scaling of Proteus (Ahmad et al., ASPLOS 2024), for one worker. The most
  accurate level whose capacity covers the demand of the last seconds with some headroom. Simplified: Proteus solves an
  integer programme over many workers and models; for one worker and one model the rule is its solution.

A static model with shedding, as Clipper serves it (Crankshaw et al., NSDI 2017), is ``fixed:LEVEL,t=MS``.
"""

from collections import deque
from dataclasses import dataclass

from elasticlm.schedule.admission import capacity_rps
from elasticlm.schedule.base import WithBudget, largest
from elasticlm.schedule.load import Load
from elasticlm.schedule.table import ChoiceT, Table
from elasticlm.schedule.triage import Triage

WINDOW_S = 0.2
"""Time over which the arrival rate is measured: of 0.2, 0.5, 1 and 2 s, the one that serves the peers best."""
UP, DOWN = 0.7, 0.9
"""Model-Switching: shares of a level's capacity up to which it is switched to, and above which it is left."""
HEADROOM = 1.05
"""Proteus: capacity kept relative to the demand."""


@dataclass(frozen=True)
class SlackFit(WithBudget):
    """The largest level at which the batch ends within the time that its most urgent request has left."""

    name = "slackfit"

    def choose(self, table: Table[ChoiceT], load: Load, found: Triage) -> ChoiceT:
        left_ms = min(load.left_ms(self.budget_ms), default=self.budget_ms - load.overhead_ms)
        return largest(table, lambda level: table.mean_ms(level, load.rows, load.tokens) <= left_ms)


@dataclass(frozen=True)
class Switching(WithBudget):
    """The largest level whose capacity carries the arrival rate; a larger level than the last needs a lower rate."""

    name = "switching"

    def choose(self, table: Table[ChoiceT], load: Load, found: Triage) -> ChoiceT:
        last = table.levels.index(load.last_level) if load.last_level in table.levels else 0

        def carries(level: ChoiceT) -> bool:
            share = UP if table.levels.index(level) < last else DOWN
            return load.arrivals_rps <= share * _capacity_rps(table, level, load)

        return largest(table, carries)


@dataclass(frozen=True)
class Demand(WithBudget):
    """The largest level whose capacity covers the arrival rate with headroom."""

    name = "demand"

    def choose(self, table: Table[ChoiceT], load: Load, found: Triage) -> ChoiceT:
        return largest(table, lambda level: HEADROOM * load.arrivals_rps <= _capacity_rps(table, level, load))


class ArrivalRate:
    """Measures the arrival rate over the last WINDOW_S.

    >>> rate = ArrivalRate()
    >>> [rate.saw(now_s, arrived) for now_s, arrived in ((0.0, 0), (1.0, 10), (4.0, 20))]
    [0.0, 10.0, 3.3333333333333335]
    """

    def __init__(self) -> None:
        self._points: deque[tuple[float, int]] = deque()

    def saw(self, now_s: float, arrived: int) -> float:
        """Record that so many requests have arrived by now, and return the rate in requests per second."""
        self._points.append((now_s, arrived))
        while len(self._points) > 1 and self._points[1][0] <= now_s - WINDOW_S:
            self._points.popleft()
        first_s, before = self._points[0]
        return (arrived - before) / max(WINDOW_S, now_s - first_s) if arrived > before else 0.0


PEERS = (SlackFit, Switching, Demand)
"""The policies of other systems."""


def _capacity_rps(table: Table[ChoiceT], level: ChoiceT, load: Load) -> float:
    rows, tokens = load.full_batch
    return capacity_rps(table, level, batch_rows=rows, tokens=tokens, batch_size=load.batch_size,
                        workers=load.workers, turnaround_ms=load.turnaround_ms)  # fmt: skip
