"""BM25 over a corpus, made on the spot: a first stage, and a source of hard negatives."""

from collections.abc import Sequence

import bm25s
import numpy as np

from elasticlm.command import progress

AT_ONCE = 512  # queries searched at once


def bm25_top(
    queries: Sequence[str], passages: Sequence[str], count: int, *, desc: str = "BM25"
) -> tuple[np.ndarray, np.ndarray]:
    """Return the best passages of each query by BM25 (English stop words left out).

    Returns:
        Rows of ``passages``, IntArray [queries, count], best first, and their scores, FloatArray [queries, count];
        passages that share no word with the query have 0.
    """
    retriever = _indexed(passages)
    rows = np.empty((len(queries), count), dtype=np.int64)
    scores = np.empty((len(queries), count))
    bar = progress(total=len(queries), desc=desc, unit="query")
    for start in range(0, len(queries), AT_ONCE):
        some = list(queries[start : start + AT_ONCE])
        tokens = bm25s.tokenize(some, stopwords="en", return_ids=False, show_progress=False)
        stop = start + len(some)
        rows[start:stop], scores[start:stop] = retriever.retrieve(tokens, k=count, show_progress=False)
        bar.update(len(some))
    bar.close()
    return rows, scores


def bm25_scores(queries: Sequence[str], passages: Sequence[str], rows: Sequence[Sequence[int]]) -> list[np.ndarray]:
    """Return the BM25 scores of each query's own passages: rows of ``passages``, FloatArray [rows of the query]."""
    retriever = _indexed(passages)
    scores = []
    for query, own in zip(queries, rows, strict=True):
        words = bm25s.tokenize([query], stopwords="en", return_ids=False, show_progress=False)[0]
        known = [word for word in words if word in retriever.vocab_dict]
        scores.append(retriever.get_scores(known)[list(own)] if known else np.zeros(len(own)))
    return scores


def _indexed(passages: Sequence[str]) -> bm25s.BM25:
    retriever = bm25s.BM25()
    retriever.index(bm25s.tokenize(list(passages), stopwords="en", show_progress=False), show_progress=False)
    return retriever
