"""The texts of an index's passages, in its order: in two memory-mapped files, whose pages workers share."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from elasticlm.retrieval.columns import PackedColumn

TEXTS_FILE, OFFSETS_FILE = "passages.txt", "offsets.npy"


class PassageTexts(PackedColumn):
    """Passages by row.

    passages.txt holds them one after another in UTF-8; offsets.npy, int64 [passages + 1], where each begins.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(np.memmap(folder / TEXTS_FILE, np.uint8, "r"), np.load(folder / OFFSETS_FILE, mmap_mode="r"))

    @staticmethod
    def write(folder: Path, passages: Iterable[str]) -> None:
        """Write the files into a new folder; every passage ends with a line break, for people."""
        folder.mkdir()
        offsets = [0]
        with open(folder / TEXTS_FILE, "wb") as file:
            for passage in passages:
                offsets.append(offsets[-1] + file.write(passage.encode("utf-8") + b"\n"))
        np.save(folder / OFFSETS_FILE, np.array(offsets, dtype=np.int64))
