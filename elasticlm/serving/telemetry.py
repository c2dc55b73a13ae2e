"""What a worker reports of its batches; an adapter publishes it (handlers.emission for TorchServe).

Elasticity hides overload from latency alarms: the budget holds while the answers get worse. `elastic_demand` shows it:
the work that arrives, were all of it done at the largest level, as a share of what the workers can do.
"""

import math
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from elasticlm.model.structure import Choice

DEMAND_HORIZON_S = 60.0
"""Time constant of the demand: what came so long ago counts 1/e."""


class Demand:
    """Arriving work of this worker at the largest level, a running mean: seconds of work a second.

    A worker sees its share of the requests, so this is arrival rate x t of the largest level / workers; above 1 even
    the whole machine could not serve everyone at the largest level.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._since = clock, clock()
        self._value = 0.0

    def add(self, work_ms: float) -> float:
        """Note a batch that would take `work_ms` at the largest level; return the demand now."""
        now = self._clock()
        self._value *= math.exp((self._since - now) / DEMAND_HORIZON_S)
        self._since = now
        self._value += work_ms / 1e3 / DEMAND_HORIZON_S
        return self._value


@dataclass(frozen=True, kw_only=True)
class BatchReport:
    """What one batch came to.

    Args:
        levels: requests answered at each level.
        errors: refusals by their code.
        misses: requests not answered within their own budget, as far as their age is known.
        ignored_starts: X-Request-Start headers that told no age.
    """

    queue_depth: int
    service_s: float
    demand: float
    levels: Counter[Choice] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    misses: int = 0
    ignored_starts: int = 0
