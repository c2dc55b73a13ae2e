"""GLUE's measures of a classifier, and what each is without one example (for the jackknife).

F1 and the correlations are not means over examples. Tukey's jackknife (Tukey 1958; Efron 1982, chapter 3) gives each
example a pseudo-value n theta - (n - 1) theta_without_i, whose mean estimates the measure and which a t-test can pair.
"""

import warnings
from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

import numpy as np
from scipy import stats

CONSTANT = 1e-12
"""Share of the largest spread below which a spread is a rounding error of 0."""
Measure = Callable[[np.ndarray, np.ndarray], float]
"""A measure of (predictions, targets), [examples] both."""


def accuracy(predictions: np.ndarray, targets: np.ndarray) -> float:
    """Share of the predictions that are right."""
    return float((predictions == targets).mean())


def f1(predictions: np.ndarray, targets: np.ndarray) -> float:
    """F1 of class 1: 2 TP / (2 TP + FP + FN), 0 where no example is or is predicted to be of that class."""
    positives = int((predictions == 1).sum() + (targets == 1).sum())
    return 2 * int(((predictions == 1) & (targets == 1)).sum()) / positives if positives else 0.0


def spearman(predictions: np.ndarray, targets: np.ndarray) -> float:
    """Spearman's rank correlation, ties by their mean rank; NaN of constant values."""
    return _correlation(stats.spearmanr, predictions, targets)


def pearson(predictions: np.ndarray, targets: np.ndarray) -> float:
    """Pearson's correlation; NaN of constant values."""
    return _correlation(stats.pearsonr, predictions, targets)


def measures_of(labels: Sequence[str]) -> dict[str, Measure]:
    """GLUE's measures: accuracy, of two classes F1 of the second too; of a regression the correlations."""
    if len(labels) == 1:
        return {"Spearman": spearman, "Pearson": pearson}
    return {"accuracy": accuracy} | ({"F1": f1} if len(labels) == 2 else {})


def f1_without_each(predictions: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Return F1 without each example, FloatArray [examples], from the counts of all: O(n)."""
    predicted, actual = (predictions == 1).astype(int), (targets == 1).astype(int)
    hits = 2 * ((predicted & actual).sum() - (predicted & actual))
    positives = predicted.sum() + actual.sum() - predicted - actual
    return np.divide(hits, positives, out=np.zeros(len(targets)), where=positives > 0)


def pearson_without_each(predictions: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Return Pearson's correlation without each example, FloatArray [examples], from the sums of all: O(n)."""
    n = len(targets)
    x, y = predictions - predictions.mean(), targets - targets.mean()
    shift = n / max(1, n - 1)  # the means move too when an example is left out
    return _ratio(x @ y - shift * x * y, x @ x - shift * x**2, y @ y - shift * y**2)


def spearman_without_each(predictions: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Return Spearman's correlation without each example, FloatArray [examples], in O(n log n).

    Without example i, the rank of every example above it falls by 1, and of those tied with it by 1/2. The sums over
    the ranks of the rest follow from cumulative sums in the order of the values; only the number of examples above i
    in both needs a search per example.
    """
    m = len(targets) - 1
    x, y = stats.rankdata(predictions), stats.rankdata(targets)
    products = x @ y - x * y - _sum_above(x, y) - _sum_above(y, x) + _above_in_both(x, y)
    covariance = products - m * ((m + 1) / 2) ** 2
    return _ratio(covariance, _spread_without_each(x), _spread_without_each(y))


WITHOUT_EACH: dict[str, tuple[Measure, Callable[[np.ndarray, np.ndarray], np.ndarray]]] = {
    "F1": (f1, f1_without_each),
    "Spearman": (spearman, spearman_without_each),
    "Pearson": (pearson, pearson_without_each),
}
"""The measures that are not means over examples, and what they are without each example."""


def pseudo_values(name: str, predictions: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Return Tukey's pseudo-values of a measure in ``WITHOUT_EACH``, FloatArray [examples].

    They are NaN where the measure does not exist, such as a correlation of constant values.
    """
    measure, without_each = WITHOUT_EACH[name]
    n = len(targets)
    return n * measure(predictions, targets) - (n - 1) * without_each(predictions, targets)


def _correlation(kind: Callable[..., Any], predictions: np.ndarray, targets: np.ndarray) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of constant values: NaN says it
        return float(kind(predictions, targets).statistic)


def _ratio(covariance: np.ndarray, spread_x: np.ndarray, spread_y: np.ndarray) -> np.ndarray:
    """Correlations from sums of products and squares; NaN where one of the two is constant."""
    varies = (spread_x > CONSTANT * spread_x.max()) & (spread_y > CONSTANT * spread_y.max())
    found = np.full(len(varies), np.nan)
    found[varies] = covariance[varies] / np.sqrt(spread_x[varies] * spread_y[varies])
    return found


def _sum_above(values: np.ndarray, order: np.ndarray) -> np.ndarray:
    """For each example i the sum of ``values`` over the examples whose ``order`` is greater; those tied count half."""
    ranked = np.argsort(order, kind="stable")
    sums = np.concatenate([[0.0], np.cumsum(values[ranked])])
    first, last = (np.searchsorted(order[ranked], order, side) for side in ("left", "right"))
    return sums[-1] - (sums[first] + sums[last] + values) / 2


def _above_in_both(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """For each example the number of others that are greater in x and in y; a tie counts half in each."""
    counts = np.empty(len(x))
    greater: list[float] = []  # the y of all examples with a greater x, sorted

    def above(value: float) -> float:
        return len(greater) - (bisect_left(greater, value) + bisect_right(greater, value)) / 2

    order = np.argsort(-x, kind="stable").tolist()
    values = y.tolist()
    for _, tied in groupby(order, key=lambda i: x[i]):
        group = list(tied)
        before = [above(values[i]) for i in group]
        for i in group:
            insort(greater, values[i])
        for i, count in zip(group, before, strict=True):
            counts[i] = (count + above(values[i])) / 2 - 0.25  # it is tied with itself in both
    return counts


def _spread_without_each(ranks: np.ndarray) -> np.ndarray:
    """The sum of squared deviations of the ranks that are left without each example: (m^3 - m - ties) / 12."""
    _, place, sizes = np.unique(ranks, return_inverse=True, return_counts=True)
    m = len(ranks) - 1
    t = sizes[place].astype(float)
    ties = (sizes.astype(float) ** 3 - sizes).sum() - (t**3 - t) + ((t - 1) ** 3 - (t - 1))
    return (float(m) ** 3 - m - ties) / 12
