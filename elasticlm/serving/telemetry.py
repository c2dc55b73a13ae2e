"""The metrics of a batch as values; an adapter publishes them (handlers.emission for TorchServe).

An elastic model hides overload from latency alarms, because latency stays within the budget while quality drops. The
counter `elastic_work_seconds_total` makes overload visible: the work that has arrived, in seconds that it would take at
the largest level. Demand is its rate divided by the number of workers; above 1, the workers cannot serve all requests
at the largest level. A counter keeps its meaning when no requests come: its rate falls to 0.
"""

from collections import Counter
from dataclasses import dataclass, field

from elasticlm.model.structure import Choice

SMOOTHING = 0.05
"""Weight of a new request in the mean time per row."""


class Work:
    """Counts arriving work at the largest level. Refused requests are not tokenised, so their work is estimated.

    >>> work = Work(row_ms=10.0)
    >>> work.add(1, None), work.add(2, 40.0)
    (10.0, 40.0)
    >>> work.add(1, None)
    10.5

    Args:
        row_ms: time of a typical row at the largest level, until requests have been answered.
    """

    def __init__(self, row_ms: float) -> None:
        self._row_ms = row_ms

    def add(self, rows: int, largest_ms: float | None) -> float:
        """Return the work in ms of a request of so many rows. ``largest_ms`` is None if it was not answered."""
        if largest_ms is None:
            return rows * self._row_ms
        self._row_ms += SMOOTHING * (largest_ms / rows - self._row_ms)
        return largest_ms


@dataclass(frozen=True, kw_only=True)
class BatchReport:
    """The metrics of one batch.

    Attributes:
        queue_depth: requests behind the batch.
        workers: workers that share the queue.
        service_s: time in the core, with the time to find out about the queue.
        table_ms: the part of it that the latency table contains.
        turnaround_s: the worker's time from one batch to the next beyond that part, as known before the batch.
        table_ratio: measured service times relative to those of the latency table, over the last batches.
        probe_up: whether the server answered when it was asked about its queue; None if it was not asked.
        work_s: work that arrived with the batch, in seconds at the largest level; refused requests included.
        levels: number of requests answered at each level.
        errors: number of requests answered with an error, by code.
        misses: number of accepted requests not answered within their budget, as far as their age is known: "server"
            where the model's own budget was missed, "client" where only a smaller one that the client asked for.
        ignored_starts: number of X-Request-Start headers that were not valid.
        int8_fallbacks: number of levels that run in fp32 because int8 is too inaccurate on this machine.
    """

    queue_depth: int
    service_s: float
    workers: int = 1
    table_ms: float = 0.0
    turnaround_s: float = 0.0
    table_ratio: float = 1.0
    probe_up: bool | None = None
    work_s: float = 0.0
    levels: Counter[Choice] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    misses: Counter[str] = field(default_factory=Counter)
    ignored_starts: int = 0
    int8_fallbacks: int = 0
