"""Batches of texts with similar lengths, so that little is computed on padding."""

from collections.abc import Iterator, Sequence

import numpy as np


def batches_by_length(
    lengths: Sequence[int] | np.ndarray, *, max_rows: int | None = None, max_tokens: int | None = None
) -> Iterator[np.ndarray]:
    """Yield the rows of each batch, IntArray [batch], longest texts first; texts of equal length keep their order.

    The longest come first, so that a batch that does not fit in memory fails at the start.

    Args:
        lengths: of the texts, [texts]: tokens, or with ``max_rows`` any other measure of length.
        max_rows: texts per batch, or None.
        max_tokens: tokens per batch, padding counted, or None; a text longer than that is a batch of its own.

    >>> [rows.tolist() for rows in batches_by_length([3, 9, 4, 3], max_rows=2)]
    [[1, 2], [0, 3]]
    >>> [rows.tolist() for rows in batches_by_length([3, 9, 4, 3], max_tokens=8)]
    [[1], [2, 0], [3]]
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        size = len(order) if max_rows is None else max_rows
        if max_tokens is not None:
            size = min(size, max(1, max_tokens // int(lengths[order[start]])))
        yield order[start : start + size]
        start += size
