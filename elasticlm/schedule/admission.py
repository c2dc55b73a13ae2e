"""What a server can carry: its capacity, and the bound of its queue."""

import math

from elasticlm.schedule.table import ChoiceT, Table
from elasticlm.schedule.triage import MARGIN


def capacity_rps(
    table: Table[ChoiceT],
    level: ChoiceT,
    *,
    batch_rows: float,
    tokens: float | None,
    batch_size: int,
    workers: int,
    turnaround_ms: float,
) -> float:
    """Return the requests per second that the workers answer at a level if batches are full.

        W B / (t(full batch) + turnaround)

    Args:
        batch_rows: sequences of a full batch.
        tokens: padded length; None: the shortest length of the table.
        batch_size: B, the maximum number of requests per batch.
        workers: W, workers that share the queue.
        turnaround_ms: time that a worker needs from one batch to the next beyond the service time.

    >>> from elasticlm.schedule.latency import LatencyTable
    >>> options = {"batch_rows": 1, "tokens": 16, "batch_size": 1, "workers": 2, "turnaround_ms": 5}
    >>> capacity_rps(LatencyTable.from_means({50: 45.0}), 50, **options)
    40.0
    """
    return 1e3 * workers * batch_size / (table.mean_ms(level, batch_rows, tokens) + turnaround_ms)


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
    """Return the number of waiting requests that can still be answered in time at a level; more must not be admitted.

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
    rate_rps = capacity_rps(table, level, batch_rows=rows * batch_size, tokens=tokens, batch_size=batch_size,
                            workers=workers, turnaround_ms=turnaround_ms)  # fmt: skip
    return max(1, math.floor(MARGIN * rate_rps * available_ms / 1e3))
