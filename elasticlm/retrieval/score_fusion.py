"""Fuse a reranker's score with the score of the first stage: score + weight x first stage.

Scores of retrievers have different scales (BM25's scores grow with the query, cosines are close together), so the first
stage's scores are rescaled to [0, 1] within each list. Each level has its own weight, which
``elasticlm evaluate --fuse`` fits.
"""

import numpy as np


def on_one_scale(first_stage: np.ndarray) -> np.ndarray:
    """Return one list's scores, FloatArray [passages], in [0, 1]; all 0 where they are alike.

    >>> on_one_scale(np.array([9.0, 7.0, 5.0])).tolist()
    [1.0, 0.5, 0.0]
    """
    if not len(first_stage) or not np.ptp(first_stage):
        return np.zeros(len(first_stage))
    return (first_stage - first_stage.min()) / np.ptp(first_stage)


def fused(scores: np.ndarray, first_stage: np.ndarray, weight: float) -> np.ndarray:
    """Return one list's scores with the first stage's in them, FloatArrays [passages]."""
    return scores + weight * on_one_scale(first_stage)
