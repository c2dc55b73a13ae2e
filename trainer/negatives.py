"""Find hard negatives: passages that a first stage ranks high and that are not judged relevant."""

from itertools import chain
from pathlib import Path

import numpy as np

from elasticlm.errors import InputError
from elasticlm.retrieval.bm25 import bm25_top
from elasticlm.retrieval.measures import Run, ranking, read_trec_run
from elasticlm.trainer.objectives.base import NONE
from elasticlm.trainer.training_pairs import TrainingPairs

OF_RERANKERS = 7  # a query, where a reranker is trained or its units are scored
BM25_DEPTH, RUN_DEPTH = 30, 100  # best passages of a first stage that a step's negatives are drawn from


def with_negatives(
    pairs: TrainingPairs, count: int, *, run: str | None = None, depth: int | None = None, judged: bool = False
) -> tuple[TrainingPairs, np.ndarray]:
    """Find at least ``count`` hard negatives per query, and keep only the passages that training needs.

    Args:
        run: a retriever's run in TREC form, whose best are taken; None: BM25's.
        depth: how many of the first stage's best passages are taken; None: 100 of a run, 30 of BM25.
        judged: without a run, what the set's candidates refuse comes first.

    Returns:
        The pairs, and rows of their passages, IntArray [queries, negatives]; the rows of queries that have fewer
        negatives than others end with NONE.
    """
    if run:
        hits = read_trec_run(Path(run))
        negatives = run_negatives(pairs, hits, least=count, depth=max(count, depth or RUN_DEPTH), where=run)
    else:
        most = len(pairs.passages) - max(map(len, pairs.no_negatives))
        negatives = bm25_negatives(pairs, max(count, min(depth or BM25_DEPTH, most)))
        if judged and any(pairs.refused):
            negatives = judged_first(pairs, negatives, count)
    named = np.fromiter(chain.from_iterable(pairs.positives + pairs.refused), np.int64)
    used = np.unique(np.concatenate([negatives[negatives != NONE], named]))
    return pairs.with_passages(used), np.where(negatives == NONE, NONE, np.searchsorted(used, negatives))


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


def run_negatives(pairs: TrainingPairs, run: Run, *, least: int, depth: int, where: str) -> np.ndarray:
    """Return the passages among the best ``depth`` of a retriever's run that are not relevant, for each query.

    Localized contrastive estimation draws its negatives from them (Gao et al. 2021, section 3).

    Args:
        run: ``run[query_id][passage_id]`` is the score.
        where: the run's file, for messages.

    Returns:
        IntArray [queries, at most depth], rows of ``pairs.passages``, best first, then NONE.

    Raises InputError where a query has fewer than ``least``.
    """
    place = {pid: row for row, pid in enumerate(pairs.passage_ids)}
    negatives = np.full((len(pairs.queries), depth), NONE)
    for i, (qid, excluded) in enumerate(zip(pairs.query_ids, pairs.no_negatives, strict=True)):
        best = ranking(run.get(qid, {}))[:depth]
        rows = [place[pid] for pid in best if pid in place and place[pid] not in excluded]
        if len(rows) < least:
            raise InputError(f"{where}: query {qid!r} has {len(rows)} passages that are not relevant among its best "
                             f"{depth}, and {least} are needed")  # fmt: skip
        negatives[i, : len(rows)] = rows
    return negatives
