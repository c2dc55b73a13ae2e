"""Calibrate the scores of a reranker to probabilities, per level (Platt scaling).

Contrastive training fixes scores only up to a shift per query, and each level has a spread of its own; a threshold on
raw scores therefore differs by level. sigmoid(a score + b), fitted on judged pairs, is comparable across levels.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

from elasticlm.errors import InputError

BINS = 15
THRESHOLD = 0.5


def fit(scores: np.ndarray, relevant: np.ndarray) -> tuple[float, float]:
    """Return (a, b) of sigmoid(a score + b) by maximum likelihood, a > 0.

    Args:
        scores: FloatArray [pairs]; relevant: BoolArray [pairs].

    Raises InputError if higher scores are not more often relevant, or if all pairs have the same relevance.
    """
    if relevant.all() or not relevant.any():
        raise InputError("calibration needs pairs that are relevant and pairs that are not")
    spread = scores.std() or 1.0  # the solver likes scores of size 1
    model = LogisticRegression(C=np.inf).fit(scores[:, None] / spread, relevant)
    a, b = float(model.coef_[0, 0] / spread), float(model.intercept_[0])
    if a <= 0:
        raise InputError("calibration: higher scores are not more often relevant: is this level trained?")
    return a, b


def expected_calibration_error(likely: np.ndarray, relevant: np.ndarray) -> float:
    """Return the mean gap of predicted and observed relevance in 15 equal bins (Nguyen and O'Connor 2015)."""
    order = np.argsort(likely, kind="stable")
    bins = np.array_split(order, min(BINS, len(order)))
    return float(sum(len(own) * abs(likely[own].mean() - relevant[own].mean()) for own in bins) / len(order))


def report(
    scores: Mapping[str, np.ndarray], relevant: np.ndarray, calibration: Mapping[str, tuple[float, float]]
) -> dict[str, dict[str, Any]]:
    """Return what calibration changes at each level.

    Returns:
        For each level ``ece`` (expected calibration error) and ``decisions_changed`` (share of pairs that fall on the
        other side of probability 0.5 than at the largest level), for the raw scores (``raw``) and as calibrated.
    """
    largest = next(iter(scores))
    found: dict[str, dict[str, Any]] = {}
    for kind in ("raw", "calibrated"):
        likely = {
            name: expit(values if kind == "raw" else calibration[name][0] * values + calibration[name][1])
            for name, values in scores.items()
        }
        for name, values in likely.items():
            changed = (values >= THRESHOLD) != (likely[largest] >= THRESHOLD)
            found.setdefault(name, {})[kind] = {
                "ece": round(expected_calibration_error(values, relevant), 6),
                "decisions_changed": round(float(changed.mean()), 6),
            }
    return found
