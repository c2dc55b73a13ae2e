"""What a worker tells TorchServe's metrics: names as in model_store/metrics.yaml, times in seconds.

Elasticity hides overload from latency alarms: the budget holds while the answers get worse. `elastic_demand` shows it:
the work that arrives, were all of it done at the largest level, as a share of what the workers can do.
"""

import math
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ts.metrics.dimension import Dimension
from ts.metrics.metric_type_enum import MetricTypes

from elasticlm.model.structure import Choice, level_name

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


def emit(metrics: Any, report: BatchReport) -> None:
    """Write a batch to TorchServe's metrics, one line each; counters that did not move are left out."""
    metrics.add_metric("elastic_queue_depth", report.queue_depth, "count", metric_type=MetricTypes.GAUGE)
    metrics.add_metric("elastic_demand", round(report.demand, 4), "ratio", metric_type=MetricTypes.GAUGE)
    seconds = round(report.service_s, 6)
    metrics.add_metric("elastic_service_seconds", seconds, "s", metric_type=MetricTypes.HISTOGRAM)
    for level, count in report.levels.items():
        metrics.add_counter("elastic_answers_total", count, dimensions=[Dimension("elastic_level", level_name(level))])
    for code, count in report.errors.items():
        metrics.add_counter("elastic_errors_total", count, dimensions=[Dimension("code", code)])
    if report.misses:
        metrics.add_counter("elastic_deadline_misses_total", report.misses)
    if report.ignored_starts:
        metrics.add_counter("elastic_request_start_ignored_total", report.ignored_starts)
