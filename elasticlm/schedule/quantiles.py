"""Distributions of service times as quantile functions: five known points, linear between them.

A latency table stores p50, p95 and p99 of each cell. The function begins as far below p50 as p95 lies above it (at half
of p50 at least) and ends as far above p99 as p95 lies below.
"""

from bisect import bisect_right
from collections.abc import Sequence

import numpy as np

SHARES = (0.0, 0.5, 0.95, 0.99, 1.0)
"""Where a quantile function is known."""
NORMAL_P99 = 0.41  # (p99 - p95) / (p95 - p50) of a normal distribution, for cells without a p99
GRID = 100  # points per stage on which the sum of two stages is evaluated


def quantiles(p50_ms: float, p95_ms: float, p99_ms: float | None, *, mean_ms: float) -> list[float]:
    """Return the quantile function at SHARES for these percentiles, scaled to this mean; it never decreases."""
    p95 = max(p50_ms, p95_ms)
    p99 = max(p95, p99_ms or p95 + NORMAL_P99 * (p95 - p50_ms))
    return scaled_to_mean([max(2 * p50_ms - p95, p50_ms / 2), p50_ms, p95, p99, 2 * p99 - p95], mean_ms)


def scaled_to_mean(quantiles_ms: Sequence[float], mean_ms: float) -> list[float]:
    """Return the quantile function, scaled so that its mean is this one.

    >>> scaled_to_mean([1.0, 1.0, 1.0, 1.0, 1.0], 5.0)
    [5.0, 5.0, 5.0, 5.0, 5.0]
    """
    factor = mean_ms / mean(quantiles_ms)
    return [ms * factor for ms in quantiles_ms]


def mean(quantiles_ms: Sequence[float]) -> float:
    """Return the mean of a quantile function."""
    return float(np.trapezoid(quantiles_ms, SHARES))


def sum_of_independent(first_ms: Sequence[float], second_ms: Sequence[float]) -> list[float]:
    """Return the quantile function of the sum of two independent times.

    The sum of two 95th percentiles is not the 95th percentile of the sum, because it is rare that both stages are slow.
    The lower end is set so that the mean of the function is the sum of both means.

    >>> one = [5.0, 10.0, 20.0, 25.0, 30.0]
    >>> [round(ms, 1) for ms in sum_of_independent(one, one)]
    [9.0, 22.9, 36.3, 42.1, 60.0]
    """
    middle = (np.arange(GRID) + 0.5) / GRID
    drawn = np.add.outer(np.interp(middle, SHARES, first_ms), np.interp(middle, SHARES, second_ms))
    p50, p95, p99 = np.quantile(drawn, SHARES[1:-1]).tolist()
    whole = [first_ms[0] + second_ms[0], p50, p95, p99, first_ms[-1] + second_ms[-1]]
    excess = mean(whole) - mean(first_ms) - mean(second_ms)
    whole[0] = min(max(0.0, whole[0] - excess / (SHARES[1] / 2)), p50)
    return whole


def at(share: float, quantiles_ms: Sequence[float]) -> float:
    """Return the time in ms that a ``share`` in [0, 1) of all batches stays below.

    >>> at(0.25, [5.0, 10.0, 20.0, 25.0, 30.0])
    7.5
    """
    i = bisect_right(SHARES, share) - 1
    position = (share - SHARES[i]) / (SHARES[i + 1] - SHARES[i])
    return quantiles_ms[i] + position * (quantiles_ms[i + 1] - quantiles_ms[i])
