"""Vectors of a model that does not change (the teacher), computed once and kept on disk.

Texts are cut into blocks of 4,096. A block's file is named by the SHA-256 of all that its vectors depend on: the
model's fingerprint (weights, tokenizer, pooling, ...) and the block's token ids, or the passages themselves. So a
resumed run, a longer one or another recipe finds what is there, and an interrupted one loses a block at most. A file
that is cut off is computed again. Vectors are computed in fp32.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from elasticlm.backend.onnx_export import on_onnx_runtime
from elasticlm.command import progress, say
from elasticlm.files import new_file
from elasticlm.model.elastic_model import ElasticModel
from elasticlm.retrieval.corpus import cache_folder
from elasticlm.trainer.processes import Processes
from elasticlm.trainer.training_texts import TokenizedTexts, encode

BLOCK = 4096  # texts per file


class Texts(Protocol):
    """What vectors are computed of, block by block."""

    def __len__(self) -> int: ...

    def part(self, start: int, stop: int) -> TokenizedTexts:
        """The texts from ``start`` to before ``stop``."""
        ...

    def content(self, start: int, stop: int) -> bytes:
        """What their vectors depend on, apart from the model: other texts have another content."""
        ...


class StoredVectors:
    """The vectors of many texts, memory-mapped: rows are read from disk when they are asked for.

    Args:
        files: one .npy file per block, FloatArray [texts, dim], in the order of the texts.
    """

    def __init__(self, files: list[Path]) -> None:
        self._files = files
        self._blocks = [np.load(file, mmap_mode="r") for file in files]

    def __len__(self) -> int:
        return sum(map(len, self._blocks))

    def __getitem__(self, rows: np.ndarray) -> Tensor:
        """Return FloatTensor [rows, dim]."""
        found = np.empty((len(rows), self._blocks[0].shape[1]), np.float32)
        blocks = rows // BLOCK
        for block in np.unique(blocks):
            here = blocks == block
            found[here] = self._blocks[block][rows[here] % BLOCK]
        return torch.from_numpy(found)

    def blocks(self) -> Iterator[np.ndarray]:
        """Yield every vector, in blocks that are read one at a time, FloatArrays [texts, dim]."""
        return map(np.load, self._files)

    def all(self) -> Tensor:
        """Return every vector, FloatTensor [texts, dim]."""
        return torch.from_numpy(np.concatenate(self._blocks))


def stored_vectors(
    model: ElasticModel, texts: Texts, processes: Processes, *, desc: str, folder: Path | None = None
) -> StoredVectors:
    """Return the texts' vectors by the model's largest level, computing those that are not on disk yet.

    Processes share out the blocks.

    Args:
        folder: where the files of these vectors alone are kept; by default the user's cache, with those of others.
    """
    cache = folder or cache_folder() / "vectors"
    fingerprint = model.fingerprint()
    blocks = [(start, min(start + BLOCK, len(texts))) for start in range(0, len(texts), BLOCK)]
    files = [cache / f"{_key(fingerprint, texts, *block)}.npy" for block in blocks]
    shapes = [(stop - start, model.config.vector_size) for start, stop in blocks]
    missing = [number for number in range(len(blocks)) if not _is_whole(files[number], shapes[number])]
    if missing:
        done = len(texts) - sum(shapes[number][0] for number in missing)
        if done:
            say(f"{desc}: {done:,} of {len(texts):,} have been encoded before")
        elif folder and any(folder.glob("*.npy")):
            say(f"{folder}: the vectors there are of other data or another model; starting anew")
        bar = progress(total=len(texts), desc=desc, unit="text", done=done)
        with on_onnx_runtime(model):
            # First this process's share, then whatever another process has not made here.
            for number in sorted(missing, key=lambda number: number % processes.count != processes.rank):
                if _is_whole(files[number], shapes[number]):
                    continue
                vectors = encode(model, texts.part(*blocks[number]), processes, precision="fp32", bar=bar)
                with new_file(files[number]) as temporary, open(temporary, "wb") as out:
                    np.save(out, vectors.numpy())
        bar.close()
    processes.wait()
    return StoredVectors(files)


def _is_whole(file: Path, shape: tuple[int, int]) -> bool:
    """Whether a block's file is there and not cut off."""
    try:
        return np.load(file, mmap_mode="r").shape == shape
    except (OSError, ValueError, EOFError):
        return False


def _key(fingerprint: str, texts: Texts, start: int, stop: int) -> str:
    return hashlib.sha256(fingerprint.encode() + texts.content(start, stop)).hexdigest()
