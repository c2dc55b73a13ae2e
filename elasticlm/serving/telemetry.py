"""The metrics that a worker reports for each batch; an adapter publishes them (handlers.emission for TorchServe).

An elastic model hides overload from latency alarms, because latency stays within the budget while quality drops. The
metric `elastic_demand` makes overload visible: it is the arriving work, if all of it ran at the largest level, relative
to the capacity of the workers.
"""

import math
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from elasticlm.model.structure import Choice

DEMAND_HORIZON_S = 60.0
"""Time constant of the demand: work that arrived this long ago has the weight 1/e."""


class Demand:
    """Running mean of this worker's arriving work at the largest level, in seconds of work per second.

    A worker sees its share of the requests, so this is arrival rate x t of the largest level / workers. Above 1, the
    workers cannot serve all requests at the largest level.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._since = clock, clock()
        self._value = 0.0

    def add(self, work_ms: float) -> float:
        """Add a batch that would take `work_ms` at the largest level, and return the current demand."""
        now = self._clock()
        self._value *= math.exp((self._since - now) / DEMAND_HORIZON_S)
        self._since = now
        self._value += work_ms / 1e3 / DEMAND_HORIZON_S
        return self._value


@dataclass(frozen=True, kw_only=True)
class BatchReport:
    """The metrics of one batch.

    Args:
        levels: number of requests answered at each level.
        errors: number of rejected requests by error code.
        misses: number of requests not answered within their budget, as far as their age is known.
        ignored_starts: number of X-Request-Start headers that were not valid.
    """

    queue_depth: int
    service_s: float
    demand: float
    levels: Counter[Choice] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    misses: int = 0
    ignored_starts: int = 0
