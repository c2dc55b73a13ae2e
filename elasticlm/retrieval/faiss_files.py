"""FAISS indexes: made from vectors, written and read. All are searched by the inner product, unless made elsewhere."""

import struct
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from elasticlm.errors import InputError

FLAT = "Flat"


def empty_index(dim: int, kind: str, seed: int = 0) -> faiss.Index:
    """Return an index without vectors; ``kind`` is a FAISS factory string. Raises InputError if there is none such."""
    try:
        index = faiss.index_factory(dim, kind, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        raise InputError(f"FAISS index kind {kind!r}: {_last_words(error)}") from None
    if isinstance(index, faiss.IndexIVF):
        index.cp.seed = seed
    return index


def make_index(vectors: np.ndarray, kind: str, seed: int = 0) -> faiss.Index:
    """Index vectors, FloatArray [vectors, dim]: Flat is exact, other kinds may be trained on them."""
    vectors = np.ascontiguousarray(vectors, dtype=np.float32)
    index = empty_index(vectors.shape[1], kind, seed)
    try:
        if not index.is_trained:
            index.train(vectors)
    except RuntimeError as error:
        raise InputError(f"FAISS index kind {kind!r}: {_last_words(error)}") from None
    index.add(vectors)
    return index


def write_index(
    file: Path, blocks: Iterable[np.ndarray], count: int, dim: int, *, kind: str = FLAT, seed: int = 0
) -> None:
    """Write the index of ``count`` vectors, which come in blocks, FloatArrays [vectors, dim].

    An exact index (Flat) is written as the blocks come. Of another kind, the index itself is in memory, and its vectors
    are in an unnamed temporary file.
    """
    if kind != FLAT:
        with tempfile.TemporaryFile() as temporary:
            for block in blocks:
                temporary.write(np.ascontiguousarray(block, np.float32).data)
            temporary.flush()
            vectors = np.memmap(temporary, np.float32, "r", shape=(count, dim))
        faiss.write_index(make_index(vectors, kind, seed), str(file))
        return
    with open(file, "wb") as out:
        out.write(_flat_header(count, dim))
        for block in blocks:
            out.write(np.ascontiguousarray(block, np.float32).data)


def read_index(file: Path, *, memory_mapped: bool) -> faiss.Index:
    """Read an index. Raises InputError where the file holds none, or not all of it."""
    try:
        return faiss.read_index(str(file), faiss.IO_FLAG_MMAP_IFC if memory_mapped else 0)
    except RuntimeError as error:
        raise InputError(f"{file}: not a FAISS index, or cut off ({_last_words(error)})") from None


def inner_index(index: Any) -> Any:
    """Return the index behind a transformation of its vectors."""
    return faiss.downcast_index(index.index) if isinstance(index, faiss.IndexPreTransform) else index


def index_inside(index: faiss.IndexIDMap) -> faiss.Index:
    """Return the index whose vectors an IDMap numbers."""
    inner: Any = faiss.downcast_index(index.index)
    inner.referenced_objects = [index]  # which frees what is in it when it goes
    return inner


def make_rows_accessible(index: Any) -> None:
    """Let an index reconstruct vectors by row; inverted files need a map for that."""
    if isinstance(inner := inner_index(index), faiss.IndexIVF):
        inner.make_direct_map()


def own_numbers(index: Any) -> np.ndarray | None:
    """Return the numbers that an index was given for its vectors [vectors], in row order; None if it has none."""
    if isinstance(index, faiss.IndexIDMap):
        return faiss.vector_to_array(index.id_map)
    if isinstance(inner := inner_index(index), faiss.IndexIVF):
        lists: Any = inner.invlists
        return np.concatenate([
            faiss.rev_swig_ptr(lists.get_ids(number), lists.list_size(number)).copy()
            for number in range(lists.nlist) if lists.list_size(number)
        ])  # fmt: skip
    return None


def check_numbers(numbers: np.ndarray, lines: int, name: str) -> None:
    """Raise InputError if a number is no line of the ids file, or two vectors have the same number."""
    if numbers.min() < 0 or numbers.max() >= lines:
        wrong = numbers[(numbers < 0) | (numbers >= lines)][0]
        raise InputError(f"{name}: its own numbers are no lines of the ids file, such as {wrong} of {lines} lines")
    if len(np.unique(numbers)) < len(numbers):
        raise InputError(f"{name}: two of its vectors have the same number")


def _last_words(error: RuntimeError) -> str:
    """FAISS names functions and source lines first; what happened comes last."""
    return str(error).strip().splitlines()[-1].rpartition(": ")[2]


def _flat_header(count: int, dim: int) -> bytes:
    """What FAISS writes before the vectors of an exact index.

    That of an index with one vector, with the number of vectors (at byte 8, after the kind and the dim) and the number
    of floats (right before them) set.
    """
    one = faiss.IndexFlatIP(dim)
    one.add(np.zeros((1, dim), np.float32))
    header = bytearray(faiss.serialize_index(one)[: -4 * dim])
    struct.pack_into("<q", header, 8, count)
    struct.pack_into("<Q", header, len(header) - 8, count * dim)
    return bytes(header)
