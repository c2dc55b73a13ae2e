"""Hard negatives for supervised retrieval: what BM25 ranks high and nobody judged relevant."""

import bm25s
import numpy as np

from elasticlm.command import progress
from elasticlm.errors import InputError
from trainer.pairs import TrainingPairs

AT_ONCE = 512  # queries searched at once


def bm25_negatives(pairs: TrainingPairs, count: int) -> np.ndarray:
    """Return the ``count`` best passages by BM25 that are not relevant, for each query.

    Returns:
        IntArray [queries, count], rows of ``pairs.passages``, best first.

    Raises InputError where the corpus has too few passages.
    """
    most = max(map(len, pairs.positives))
    if len(pairs.passages) < count + most:
        raise InputError(f"{count} negatives a query: the data has only {len(pairs.passages)} passages")
    retriever = bm25s.BM25()
    retriever.index(bm25s.tokenize(pairs.passages, stopwords="en", show_progress=False), show_progress=False)
    negatives = np.empty((len(pairs.queries), count), dtype=np.int64)
    bar = progress(total=len(pairs.queries), desc="BM25 negatives", unit="query")
    for start in range(0, len(pairs.queries), AT_ONCE):
        queries = pairs.queries[start : start + AT_ONCE]
        tokens = bm25s.tokenize(queries, stopwords="en", return_ids=False, show_progress=False)
        hits, _ = retriever.retrieve(tokens, k=count + most, show_progress=False)
        for i, ranked in enumerate(hits.tolist(), start):
            relevant = set(pairs.positives[i])
            negatives[i] = [row for row in ranked if row not in relevant][:count]
        bar.update(len(queries))
    bar.close()
    return negatives
