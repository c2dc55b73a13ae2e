"""Find hard negatives: passages that a first stage ranks high and that are not judged relevant."""

from itertools import chain
from pathlib import Path

import numpy as np

from elasticlm.errors import InputError
from elasticlm.retrieval.bm25 import bm25_top
from elasticlm.retrieval.measures import read_trec_run
from elasticlm.trainer.training_pairs import TrainingPairs

OF_RERANKERS = 7  # a query, where a reranker is trained or its units are scored
CANDIDATES = 30  # best BM25 passages that a step's negatives are drawn from


def with_negatives(
    pairs: TrainingPairs, count: int, *, run: str | None = None, judged: bool = False
) -> tuple[TrainingPairs, np.ndarray]:
    """Find at least ``count`` hard negatives per query, and keep only the passages that training needs.

    Args:
        run: a retriever's run in TREC form, whose best are taken; None: BM25's.
        judged: what the set's candidates refuse comes first.

    Returns:
        The pairs, and rows of their passages, IntArray [queries, negatives].
    """
    if run:
        negatives = run_negatives(pairs, read_trec_run(Path(run)), count, run)
    else:
        most = len(pairs.passages) - max(map(len, pairs.no_negatives))
        negatives = bm25_negatives(pairs, max(count, min(CANDIDATES, most)))
        if judged and any(pairs.refused):
            negatives = judged_first(pairs, negatives, count)
    used = np.unique([*negatives.ravel(), *chain.from_iterable(pairs.positives + pairs.refused)])
    return pairs.with_passages(used), np.searchsorted(used, negatives)


def bm25_negatives(pairs: TrainingPairs, count: int) -> np.ndarray:
    """Return the ``count`` best passages by BM25 that are not relevant, for each query.

    Returns:
        IntArray [queries, count], rows of ``pairs.passages``, best first.

    Raises InputError where the corpus has too few passages.
    """
    most = max(map(len, pairs.no_negatives))
    if len(pairs.passages) < count + most:
        raise InputError(f"{count} negatives a query: the data has only {len(pairs.passages)} passages")
    hits, _ = bm25_top(pairs.queries, pairs.passages, count + most, desc="BM25 negatives")
    return np.array([
        [row for row in ranked if row not in excluded][:count]
        for ranked, excluded in zip(hits.tolist(), pairs.no_negatives, strict=True)
    ])  # fmt: skip


def judged_first(pairs: TrainingPairs, others: np.ndarray, count: int) -> np.ndarray:
    """Return ``count`` negatives a query, IntArray [queries, count]: what was judged and refused, then ``others``."""
    return np.array([
        list(dict.fromkeys([*refused, *row]))[:count]
        for refused, row in zip(pairs.refused, others.tolist(), strict=True)
    ])  # fmt: skip


def run_negatives(pairs: TrainingPairs, run: dict[str, dict[str, float]], count: int, where: str) -> np.ndarray:
    """Return, likewise, the best passages of a retriever's run that are not relevant.

    Args:
        run: ``run[query_id][passage_id]`` is the score.
        where: the run's file, for what is said of it.

    Raises InputError where a query has too few.
    """
    place = {pid: row for row, pid in enumerate(pairs.passage_ids)}
    negatives = np.empty((len(pairs.queries), count), dtype=np.int64)
    for i, (qid, excluded) in enumerate(zip(pairs.query_ids, pairs.no_negatives, strict=True)):
        ranked = sorted(run.get(qid, {}).items(), key=lambda hit: -hit[1])
        rows = [place[pid] for pid, _ in ranked if pid in place and place[pid] not in excluded][:count]
        if len(rows) < count:
            raise InputError(
                f"{where}: query {qid!r} has {len(rows)} passages that are not relevant, {count} are needed"
            )
        negatives[i] = rows
    return negatives
