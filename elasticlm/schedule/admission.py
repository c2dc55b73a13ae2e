"""The bound of the queue: what cannot be answered in time must not be admitted."""

import math

from elasticlm.schedule.table import ChoiceT, Table

MARGIN = 0.9
"""Share of the budget that the bound plans with."""


def queue_bound(
    table: Table[ChoiceT],
    level: ChoiceT,
    *,
    budget_ms: float,
    batch_size: int,
    workers: int,
    rows: int,
    tokens: int | None,
    overhead_ms: float,
    turnaround_ms: float,
) -> int:
    """Return the number of waiting requests that can still be answered in time at a level.

        max(1, floor(0.9 W B (T - r - t(1)) / (t(full batch) + turnaround)))

    Args:
        level: the smallest level that the policy can choose.
        budget_ms: T.
        batch_size: B, the maximum number of requests per batch.
        workers: W, workers that share the queue.
        rows: sequences of a request.
        tokens: padded length of a request; None: the shortest length of the table.
        overhead_ms: r, time that the server adds per request.
        turnaround_ms: time that a worker needs from one batch to the next beyond the service time.

    >>> from elasticlm.schedule.latency import LatencyTable
    >>> table = LatencyTable.from_means({100: 40.0, 5: 5.0})
    >>> options = {"batch_size": 1, "workers": 1, "rows": 1, "tokens": 16, "overhead_ms": 2, "turnaround_ms": 3}
    >>> queue_bound(table, 5, budget_ms=200, **options), queue_bound(table, 5, budget_ms=4, **options)
    (21, 1)
    """
    available_ms = budget_ms - overhead_ms - table.mean_ms(level, rows, tokens)
    per_batch_ms = table.mean_ms(level, rows * batch_size, tokens) + turnaround_ms
    return max(1, math.floor(MARGIN * workers * batch_size * available_ms / per_batch_ms))
