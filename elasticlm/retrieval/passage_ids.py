"""The ids of an index's passages: by row, and rows by id, in about 30 bytes per passage and the id itself."""

from array import array
from collections.abc import Iterable, Sequence

import numpy as np

from elasticlm.errors import InputError
from elasticlm.retrieval.columns import PackedColumn


class PassageIds(PackedColumn):
    """Passage ids in row order.

    >>> ids = PassageIds(["p1", "p2", "p3"])
    >>> ids[2], "p2" in ids, ids.rows(["p3", "p1", "other"]).tolist()
    ('p3', True, [2, 0, -1])
    """

    def __init__(self, ids: Iterable[str]) -> None:
        text, offsets, hashes = bytearray(), array("q", [0]), array("q")
        for pid in ids:
            text += pid.encode("utf-8") + b"\n"
            offsets.append(len(text))
            hashes.append(hash(pid))
        super().__init__(text, offsets)
        unsorted = np.frombuffer(hashes, np.int64)
        self._by_hash = np.argsort(unsorted)
        self._hashes = unsorted[self._by_hash]

    def rows(self, ids: Sequence[str]) -> np.ndarray:
        """Return the row of each id, IntArray [ids]; -1 for an id that is not there."""
        hashes = np.fromiter(map(hash, ids), np.int64, len(ids))
        first, last = (np.searchsorted(self._hashes, hashes, side).tolist() for side in ("left", "right"))
        places = map(slice, first, last)
        return np.array([self._row(pid, self._by_hash[place]) for pid, place in zip(ids, places, strict=True)],
                        dtype=np.int64)  # fmt: skip

    def __contains__(self, passage_id: object) -> bool:
        return isinstance(passage_id, str) and bool(self.rows([passage_id])[0] >= 0)

    def _row(self, passage_id: str, candidates: np.ndarray) -> int:
        """The row of an id among those with its hash, IntArray [candidates]."""
        return next((row for row in candidates.tolist() if self.one(row) == passage_id), -1)


def check_ids(ids: Iterable[str]) -> None:
    """Raise InputError for an id that a file of ids, one per line, cannot hold."""
    if broken := next((pid for pid in ids if len(pid.splitlines()) != 1), None):
        raise InputError(f"passage id {broken!r} holds a line break, which ids.txt cannot")
