"""Scale a Ray Serve deployment by demand: work that arrives, relative to what its replicas can do at the largest level.

An elastic model hides overload from queue lengths, because it answers faster at smaller levels. Demand shows it:

    demand = seconds of work that arrive per second, counted at the largest level / replicas

Above 1 the replicas cannot answer everything at the largest level; below 0.5 half of them could.
"""

import math
import time
from collections import deque
from collections.abc import Callable
from typing import Any

WORK_RATE = "elastic_work_seconds_per_second"
"""What each replica reports to Ray Serve's controller."""
SCALE_OUT, SCALE_IN = 1.0, 0.5
"""Demand above which there is one replica more, and below which there is one less."""
WINDOW_S = 10.0
"""Over how long the rate of work is taken."""


class WorkRate:
    """Seconds of work per second over the last `WINDOW_S` seconds.

    >>> clock = iter([0.0, 0.0, 5.0, 10.0, 30.0])
    >>> rate = WorkRate(lambda: next(clock))
    >>> rate.add(4.0), rate.add(8.0), rate(), rate()
    (None, None, 1.2, 0.0)
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._added: deque[tuple[float, float]] = deque()
        self._started_s = clock()

    def add(self, work_s: float) -> None:
        """Record work that has arrived."""
        self._added.append((self._clock(), work_s))

    def __call__(self) -> float:
        """Return the rate."""
        now_s = self._clock()
        while self._added and now_s - self._added[0][0] > WINDOW_S:
            self._added.popleft()
        return sum(work_s for _, work_s in self._added) / min(WINDOW_S, max(1.0, now_s - self._started_s))


def replicas_for(work_rate: float, replicas: int) -> int:
    """Return the number of replicas for the rate of work that all of them report together.

    >>> [replicas_for(rate, 2) for rate in (0.9, 1.1, 2.0, 2.1)]
    [1, 2, 2, 3]
    """
    demand = work_rate / replicas
    return replicas + (demand > SCALE_OUT) - (demand < SCALE_IN and replicas > 1)


def scale_by_demand(context: Any) -> tuple[int, dict[str, Any]]:
    """Return the number of replicas, as a Ray Serve autoscaling policy.

    Ray Serve applies the bounds and delays of the deployment: `upscale_delay_s` is how long the demand has to be above
    1, `downscale_delay_s` how long below 0.5.

    Args:
        context: a ray.serve.config.AutoscalingContext.
    """
    replicas = context.current_num_replicas
    if replicas == 0:
        return max(1, context.capacity_adjusted_min_replicas), {}
    reported = (context.aggregated_metrics or {}).get(WORK_RATE) or {}
    known = [rate for rate in reported.values() if math.isfinite(rate)]
    if not known:
        return replicas, {}
    return replicas_for(sum(known), replicas), {}
