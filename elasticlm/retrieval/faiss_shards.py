"""Several FAISS indexes searched as one."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import faiss
import numpy as np

from elasticlm.retrieval.faiss_files import make_rows_accessible


class FaissShards:
    """FAISS indexes of one dimension and metric; the rows of each follow those of the one before.

    It has those members of faiss.Index that PassageIndex uses.

    Args:
        shards: indexes without numbers of their own, except inverted files, whose numbers are their rows.
    """

    def __init__(self, shards: Sequence[Any]) -> None:
        self.shards = list(shards)
        self.d, self.metric_type = self.shards[0].d, self.shards[0].metric_type
        self._starts = np.cumsum([0, *(shard.ntotal for shard in self.shards)])

    @property
    def ntotal(self) -> int:
        return int(self._starts[-1])

    @property
    def rows(self) -> list[range]:
        """The rows of each shard."""
        return [range(start, stop) for start, stop in pairwise(self._starts.tolist())]

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Return scores (or distances) and rows [queries, k], best first; row -1 and the worst score fill gaps.

        Only the best hits so far and those of one shard are in memory.
        """
        nearest_first = 1 if self.metric_type == faiss.METRIC_L2 else -1
        scores: np.ndarray = np.empty((len(queries), 0), np.float32)
        rows: np.ndarray = np.empty((len(queries), 0), np.int64)
        for shard, start in zip(self.shards, self._starts, strict=False):
            here, found = shard.search(queries, min(k, shard.ntotal))
            scores = np.concatenate([scores, here], axis=1)
            rows = np.concatenate([rows, np.where(found >= 0, found + start, -1)], axis=1)
            order = np.lexsort((rows, nearest_first * scores))[:, :k]
            scores, rows = (np.take_along_axis(hits, order, axis=1) for hits in (scores, rows))
        return scores, rows

    def reconstruct_n(self, start: int, count: int) -> np.ndarray:
        """The vectors of consecutive rows, float32 [rows, dim]."""
        return self.reconstruct_batch(np.arange(start, start + count))

    def reconstruct_batch(self, rows: np.ndarray) -> np.ndarray:
        """The vectors of rows, float32 [rows, dim]."""
        vectors = np.empty((len(rows), self.d), np.float32)
        places = np.searchsorted(self._starts, rows, side="right") - 1
        for place in np.unique(places):
            shard = self.shards[place]
            make_rows_accessible(shard)
            vectors[places == place] = shard.reconstruct_batch(rows[places == place] - self._starts[place])
        return vectors
