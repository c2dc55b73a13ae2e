"""The best that any choice of levels could have reached, had it known all arrivals and service times."""

from collections.abc import Sequence

import numpy as np

from elasticlm.benchmarks.queue_server import Server
from elasticlm.benchmarks.queue_traffic import OpenLoop
from elasticlm.benchmarks.service_times import Times
from elasticlm.schedule.quantiles import SHARES


def all_service_ms(table: Times, server: Server, traffic: OpenLoop) -> np.ndarray:
    """Return how long each request would hold the worker at each level, turnaround included: [requests, levels]."""
    quantiles = [table.quantiles_ms(level, server.rows, server.tokens) for level in table.levels]
    return np.stack([np.interp(traffic.shares, SHARES, known) for known in quantiles], axis=1) + server.turnaround_ms


def hindsight_bound(
    arrival_ms: np.ndarray,
    service_ms: np.ndarray,
    quality: Sequence[float],
    budget_ms: float,
    *,
    grid_ms: float = 1.0,
) -> float:
    """Return the most quality in time per request that any choice of levels reaches with B = W = 1.

    max over all choices of sum(quality x [latency <= T]) / requests, all arrivals and all service times known, where a
    choice may also leave a request out at no cost: a dynamic programme over the time at which the server is free. That
    time lies on a grid, rounded down, so that the result is an upper bound: it errs by what `grid_ms` a request gives
    away, and is exact where all is on the grid.

    Args:
        arrival_ms: [requests], ascending.
        service_ms: how long request i holds the server at each level, [requests, levels].
        quality: of each level, 0 or more, [levels].
        budget_ms: T.
    """
    arrival, service, budget = arrival_ms / grid_ms, service_ms / grid_ms, budget_ms / grid_ms + 1e-9
    first, best = 0, np.zeros(1)  # best[i]: most quality so far with the server free at first + i or sooner
    for at, holds in zip(arrival.tolist(), service.tolist(), strict=True):
        free = int(at) - first  # the last place of `best` at which the server is free when the request comes
        busy_from, busy = first + max(0, free + 1), best[max(0, free + 1) :]
        left_out = min(max(free, 0), len(best) - 1)
        ends = [
            (first + max(free, left_out), best[left_out:])
        ]  # (when the server is free again, quality from there on)
        for worth, hold in zip(quality, holds, strict=True):
            if free >= 0:
                end = int(at + hold)
                ends.append((end, best[min(free, len(best) - 1), None] + worth * (end - at <= budget)))
            if len(busy):
                end, gained = busy_from + int(hold), busy.copy()
                gained[: max(0, int(np.floor(at + budget)) + 1 - end)] += worth
                ends.append((end, gained))
        first = min(end for end, _ in ends)
        best = np.full(max(end + len(gained) for end, gained in ends) - first, -np.inf)
        for end, gained in ends:
            part = best[end - first : end - first + len(gained)]
            np.maximum(part, gained, out=part)
        np.maximum.accumulate(best, out=best)
        best = best[: np.searchsorted(best, best[-1]) + 1]  # free later for no more quality: never better
    return float(best[-1] / len(arrival))
