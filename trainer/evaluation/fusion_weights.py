"""Fit the weight of the first stage's scores per reranker level (see elasticlm.retrieval.score_fusion)."""

from collections.abc import Mapping

import numpy as np

from elasticlm.retrieval import measures as metrics
from elasticlm.retrieval.score_fusion import fused

WEIGHTS = (0.0, *(2.0**power for power in range(-4, 9)))  # lambda_k >= 0; the raw scores' spread differs by level


def fuse(run: metrics.Run, lists: metrics.Run, weight: float) -> dict[str, dict[str, float]]:
    """Return a reranker's run with the scores of the first stage, which made its ``lists``, at this weight."""

    def scores_of(own: Mapping[str, float], first: Mapping[str, float]) -> dict[str, float]:
        both = fused(np.array(list(own.values())), np.array([first[pid] for pid in own]), weight)
        return dict(zip(own, both.tolist(), strict=True))

    return {qid: scores_of(own, lists[qid]) for qid, own in run.items()}


def fit(run: metrics.Run, lists: metrics.Run, qrels: Mapping[str, Mapping[str, int]], measure: str) -> float:
    """Return the weight whose fused run has the best mean of a measure; the smallest such weight if several tie."""

    def quality(weight: float) -> float:
        return metrics.mean(metrics.per_query(qrels, fuse(run, lists, weight), [measure])[measure])

    return max(WEIGHTS, key=quality)
