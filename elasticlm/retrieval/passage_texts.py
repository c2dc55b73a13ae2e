"""The texts of an index's passages, in its order: in two memory-mapped files, whose pages workers share."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

TEXTS_FILE, OFFSETS_FILE = "passages.txt", "offsets.npy"


class PassageTexts:
    """Passages by row.

    passages.txt holds them one after another in UTF-8; offsets.npy, int64 [passages + 1], where each begins.
    """

    def __init__(self, folder: Path) -> None:
        self._texts = np.memmap(folder / TEXTS_FILE, np.uint8, "r")
        self._offsets = np.load(folder / OFFSETS_FILE, mmap_mode="r")

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, row: int) -> str:
        start, stop = self._offsets[row : row + 2]
        return self._texts[start : stop - 1].tobytes().decode("utf-8")

    @staticmethod
    def write(folder: Path, passages: Iterable[str]) -> None:
        """Write the files into a new folder; every passage ends with a line break, for people."""
        folder.mkdir()
        offsets = [0]
        with open(folder / TEXTS_FILE, "wb") as file:
            for passage in passages:
                offsets.append(offsets[-1] + file.write(passage.encode("utf-8") + b"\n"))
        np.save(folder / OFFSETS_FILE, np.array(offsets, dtype=np.int64))
