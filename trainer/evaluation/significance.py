"""Whether two evaluations of the same queries or examples differ: the t-test of the paper's tables, and the bootstrap.

The paired bootstrap of means is elasticlm.retrieval.measures.difference().
"""

import warnings
from collections.abc import Callable

import numpy as np
from scipy import stats

from elasticlm.retrieval.measures import BOOTSTRAP_SAMPLES, INTERVAL


def t_test_p(first: np.ndarray, second: np.ndarray) -> float:
    """Return the two-sided p-value of the paired t-test (scipy.stats.ttest_rel).

    Args:
        first, second: FloatArrays [queries]; queries where either is NaN are left out.

    Returns:
        1.0 where no query differs, or where there are fewer than two queries.

    >>> round(t_test_p(np.array([1.0, 2.0, 3.0]), np.array([2.0, 2.0, 5.0])), 4)
    0.2254
    """
    applies = ~(np.isnan(first) | np.isnan(second))
    first, second = first[applies], second[applies]
    if len(first) < 2 or not (second - first).any():
        return 1.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # equal differences, whose deviation is 0: p is 0
        return float(stats.ttest_rel(second, first).pvalue)


def resampled_difference(
    measure: Callable[[np.ndarray], tuple[float, float]], count: int, *, samples: int = BOOTSTRAP_SAMPLES, seed: int = 0
) -> tuple[list[float], float]:
    """Return what measures.difference() returns, of a measure that is not a mean over examples (F1, a correlation).

    Args:
        measure: gives the first and the second value over these examples (rows, IntArray).
        count: how many examples there are.

    Returns:
        [second - first, low, high] and the two-sided p-value. Samples in which the measure does not exist are left
        out; where it does not exist over all examples, the numbers are NaN.
    """
    rng = np.random.default_rng(seed)
    pairs = np.array([measure(rng.integers(0, count, count)) for _ in range(samples)])
    differences = pairs[:, 1] - pairs[:, 0]
    differences = differences[np.isfinite(differences)]
    first, second = measure(np.arange(count))
    if not np.isfinite(second - first) or not len(differences):
        return [float("nan")] * 3, float("nan")
    low, high = np.percentile(differences, INTERVAL)
    tail = min((differences <= 0).sum(), (differences >= 0).sum())
    return [second - first, float(low), float(high)], min(1.0, 2 * (int(tail) + 1) / (len(differences) + 1))
