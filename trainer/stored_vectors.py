"""Vectors of a model that does not change (the teacher), computed once and kept on disk.

Texts are cut into blocks of 4,096. A block's file is named by the SHA-256 of all that its vectors depend on: the
model's fingerprint (weights, tokenizer, pooling, ...) and the block's token ids. So a resumed run, a longer one or
another recipe finds what is there, and an interrupted one loses a block at most. A file that is cut off is computed
again. Vectors are computed in fp32.
"""

import hashlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from elasticlm.backend.onnx_export import on_onnx_runtime
from elasticlm.command import progress
from elasticlm.files import new_file
from elasticlm.model.elastic_model import ElasticModel
from elasticlm.retrieval.corpus import cache_folder
from elasticlm.trainer.processes import Processes
from elasticlm.trainer.training_texts import TokenizedTexts, encode

BLOCK = 4096  # texts per file


class StoredVectors:
    """The vectors of many texts, memory-mapped: rows are read from disk when they are asked for.

    Args:
        files: one .npy file per block, FloatArray [texts, dim], in the order of the texts.
    """

    def __init__(self, files: list[Path]) -> None:
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

    def all(self) -> Tensor:
        """Return every vector, FloatTensor [texts, dim]."""
        return torch.from_numpy(np.concatenate(self._blocks))


def stored_vectors(
    model: ElasticModel, texts: TokenizedTexts, processes: Processes, *, desc: str, folder: Path | None = None
) -> StoredVectors:
    """Return the texts' vectors by the model's largest level, computing those that are not on disk yet.

    Processes share out the blocks.

    Args:
        folder: where the files are kept; by default the user's cache.
    """
    folder = folder or cache_folder() / "vectors"
    blocks = [texts.part(start, start + BLOCK) for start in range(0, len(texts), BLOCK)]
    fingerprint = model.fingerprint()
    files = [folder / f"{_key(fingerprint, block)}.npy" for block in blocks]
    shapes = [(len(block), model.config.vector_size) for block in blocks]
    order = [*range(processes.rank, len(blocks), processes.count), *range(len(blocks))]
    if not all(map(_is_whole, files, shapes)):
        bar = progress(total=len(texts), desc=desc, unit="text")
        with on_onnx_runtime(model):
            for number in order:
                if _is_whole(
                    files[number], shapes[number]
                ):  # the second part of the range: whatever another process has not made here
                    continue
                vectors = encode(model, blocks[number], processes, precision="fp32", bar=bar)
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


def _key(fingerprint: str, block: TokenizedTexts) -> str:
    digest = hashlib.sha256(fingerprint.encode())
    digest.update(block.lengths.astype(np.int64).tobytes())
    digest.update(block.token_ids.astype(np.int32).tobytes())
    return digest.hexdigest()
