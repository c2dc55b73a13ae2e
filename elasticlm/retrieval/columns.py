"""Columns of texts that become Python strings only when they are asked for, so that a corpus need not fit in memory.

A column is a sequence of strings, equal to a list of the same strings. Iterating over it holds one block at a time.
"""

from abc import abstractmethod
from array import array
from bisect import bisect_right
from collections.abc import Container, Iterator, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, overload

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa

BLOCK = 1024  # texts that are strings at the same time while a column is iterated over
SPARSE = 4  # rows per kept row from which on kept rows are read one by one


class Column(Sequence[str]):
    """What all columns have in common."""

    __hash__ = None  # type: ignore[assignment]  # as a list

    @abstractmethod
    def part(self, start: int, stop: int) -> list[str]:
        """The texts from row ``start`` to before ``stop``."""

    def one(self, row: int) -> str:
        """The text of a row that is not negative."""
        return self.part(row, row + 1)[0]

    @overload
    def __getitem__(self, row: int) -> str: ...
    @overload
    def __getitem__(self, row: slice) -> list[str]: ...
    def __getitem__(self, row: int | slice) -> str | list[str]:
        rows = range(len(self))[row]
        if isinstance(rows, int):
            return self.one(rows)
        return self.part(rows.start, rows.stop) if rows.step == 1 else [self.one(row) for row in rows]

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), BLOCK):
            yield from self.part(start, min(start + BLOCK, len(self)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(ours == theirs for ours, theirs in zip(self, other, strict=True))


class ArrowColumn(Column):
    """A column of an Arrow table without nulls; a table of ``datasets`` is a memory-mapped file."""

    def __init__(self, column: "pa.ChunkedArray") -> None:
        self._column = column

    def __len__(self) -> int:
        return len(self._column)

    def part(self, start: int, stop: int) -> list[str]:
        return self._column.slice(start, stop - start).to_pylist()

    def one(self, row: int) -> str:
        return self._column[row].as_py()


class PackedColumn(Column):
    """Texts in UTF-8 one after another, each with a line break behind it.

    Args:
        text: the bytes, in memory or in a memory-mapped file.
        offsets: where each text begins and the last one ends, int64 [texts + 1].
    """

    def __init__(self, text: bytearray | np.ndarray, offsets: "array[int] | np.ndarray") -> None:
        self._text, self._offsets = text, offsets

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def part(self, start: int, stop: int) -> list[str]:
        return [self.one(row) for row in range(start, stop)]

    def one(self, row: int) -> str:
        return bytes(self._text[self._offsets[row] : self._offsets[row + 1] - 1]).decode("utf-8")


class PassageColumn(Column):
    """What is encoded of each passage: ``(title + " " + text).strip()``."""

    def __init__(self, titles: Sequence[str], texts: Sequence[str]) -> None:
        self._titles, self._texts = titles, texts

    def __len__(self) -> int:
        return len(self._texts)

    def part(self, start: int, stop: int) -> list[str]:
        pairs = zip(self._titles[start:stop], self._texts[start:stop], strict=True)
        return [f"{title} {text}".strip() for title, text in pairs]

    def one(self, row: int) -> str:
        return f"{self._titles[row]} {self._texts[row]}".strip()


class KeptColumn(Column):
    """Some rows of another column.

    Args:
        rows: IntArray [kept], ascending.
    """

    def __init__(self, column: Sequence[str], rows: np.ndarray) -> None:
        self._column, self._rows = column, rows

    def __len__(self) -> int:
        return len(self._rows)

    def part(self, start: int, stop: int) -> list[str]:
        rows = self._rows[start:stop]
        if not len(rows):
            return []
        first = int(rows[0])
        if int(rows[-1]) - first >= SPARSE * len(rows):
            return [self._column[row] for row in rows.tolist()]
        stretch = self._column[first : int(rows[-1]) + 1]
        return [stretch[row] for row in (rows - first).tolist()]

    def one(self, row: int) -> str:
        return self._column[int(self._rows[row])]


class JoinedColumn(Column):
    """The texts of several columns, one column after another."""

    def __init__(self, columns: Sequence[Sequence[str]]) -> None:
        self._columns = columns
        self._starts = [0, *accumulate(map(len, columns))]

    def __len__(self) -> int:
        return self._starts[-1]

    def part(self, start: int, stop: int) -> list[str]:
        places = zip(self._columns, self._starts, strict=False)
        return [text for column, first in places for text in column[max(0, start - first) : max(0, stop - first)]]

    def one(self, row: int) -> str:
        place = bisect_right(self._starts, row) - 1
        return self._columns[place][row - self._starts[place]]


def rows_of(ids: Sequence[str], wanted: Container[str]) -> dict[str, int]:
    """Return the row of each wanted id that is among the ids. Reads the ids once and keeps nothing of the others."""
    return {pid: row for row, pid in enumerate(ids) if pid in wanted}


def first_repeat(texts: Sequence[str]) -> tuple[int, int] | None:
    """Return the first row whose text also occurs in an earlier row, and that row; None if all texts differ.

    Keeps eight bytes per text.

    >>> first_repeat(["a", "b", "c", "b", "a"])
    (3, 1)
    """
    hashes = np.fromiter(map(hash, texts), np.int64, len(texts))
    hashes.sort()
    suspects = set(hashes[1:][hashes[1:] == hashes[:-1]].tolist())
    seen: dict[str, int] = {}
    for row, text in enumerate(texts if suspects else ()):
        if hash(text) in suspects and (before := seen.setdefault(text, row)) != row:
            return row, before
    return None
