"""A reranker's score fused with that of the first stage whose list it orders anew: score + weight x first stage.

Retrievers have scales of their own (BM25's scores grow with the query, cosines lie close together), so the first
stage's scores are moved and stretched to [0, 1], a list at a time: what is fitted on one depth and one retriever reads
the same where it is served. The weight is a level's own, fitted by ``elasticlm evaluate --fuse``.
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
