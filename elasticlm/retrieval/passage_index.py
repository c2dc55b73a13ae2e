"""The passage index: FAISS by inner product, passage ids beside it. Needs faiss and numpy only.

An index folder holds passages.faiss, ids.txt (one passage id a line, row order) and index.json (fingerprint of what
encoded the passages, dim, count, SHA-256 of the corpus). An index made elsewhere is a FAISS file with an ids file. Its
metric may be L2 if its vectors have length 1. If it numbers its vectors itself, number n is line n of the ids file.
"""

import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import faiss
import numpy as np

from elasticlm.command import say
from elasticlm.errors import InputError
from elasticlm.files import new_folder

if TYPE_CHECKING:
    from elasticlm.model.elastic_model import ElasticModel
    from elasticlm.retrieval.corpus import Corpus

FAISS_FILE, IDS_FILE, JSON_FILE = "passages.faiss", "ids.txt", "index.json"
SAMPLE, LEAST_COSINE = 16, 0.95
LENGTHS_CHECKED, LENGTH_TOLERANCE = 1000, 0.01


class PassageIndex:
    """Passages as vectors, searched by inner product.

    Args:
        index: a FAISS index; its metric is the inner product, or L2 over vectors of length 1.
        ids: passage ids in the order of the index's numbers, which are its rows unless it was given others.
        fingerprint: of the model that encoded the passages; None where it is unknown.
        corpus_sha256: of the corpus; None where it is unknown.
        name: how errors call it.
    """

    def __init__(
        self,
        index: faiss.Index,
        ids: Sequence[str],
        *,
        fingerprint: str | None = None,
        corpus_sha256: str | None = None,
        name: str = "index",
    ) -> None:
        if not index.ntotal:
            raise InputError(f"{name}: holds no passage")
        if (numbers := own_numbers(index)) is not None:
            by_row = _ids_of(numbers, ids, name)
            if isinstance(index, faiss.IndexIDMap):  # an inverted file keeps its numbers
                self._owner, index = index, faiss.downcast_index(index.index)  # frees what is in it when it goes
                ids = by_row
        if index.ntotal != len(ids):
            raise InputError(f"{name}: {index.ntotal} vectors, but {len(ids)} ids")
        self.faiss, self.ids, self.name = index, list(ids), name
        self._has_distances = index.metric_type == faiss.METRIC_L2
        if self._has_distances:
            self._check_lengths()
        elif index.metric_type != faiss.METRIC_INNER_PRODUCT:
            raise InputError(f"{name}: its metric is neither the inner product nor L2")
        self.fingerprint, self.corpus_sha256 = fingerprint, corpus_sha256
        self.row = {pid: row for row, pid in enumerate(self.ids)}
        if len(self.row) < len(self.ids):
            twice = next(pid for row, pid in enumerate(self.ids) if self.row[pid] != row)
            raise InputError(f"{name}: duplicate id {twice!r}")

    @classmethod
    def build(
        cls,
        vectors: np.ndarray,
        ids: Sequence[str],
        *,
        fingerprint: str | None,
        corpus_sha256: str | None,
        kind: str = "Flat",
        seed: int = 0,
    ) -> "PassageIndex":
        """Index vectors [passages, dim]; ``kind`` is a FAISS factory string (Flat is exact, others may be trained)."""
        vectors = np.ascontiguousarray(vectors, dtype=np.float32)
        try:
            index = faiss.index_factory(vectors.shape[1], kind, faiss.METRIC_INNER_PRODUCT)
            if isinstance(index, faiss.IndexIVF):
                index.cp.seed = seed
            if not index.is_trained:
                index.train(vectors)
        except RuntimeError as error:
            raise InputError(f"FAISS index kind {kind!r}: {_last_words(error)}") from None
        index.add(vectors)
        return cls(index, ids, fingerprint=fingerprint, corpus_sha256=corpus_sha256)

    @classmethod
    def load(
        cls, path: str | Path, ids_file: str | Path | None = None, *, memory_mapped: bool = False
    ) -> "PassageIndex":
        """Load an index folder, or a FAISS file made elsewhere with its ids file.

        Args:
            memory_mapped: leave the vectors on disk, where processes share them; the file must then stay as it is.

        Raises InputError where a file is missing, broken, or does not fit the others.
        """
        path = Path(path)
        folder = path if path.is_dir() else None
        faiss_file = path / FAISS_FILE if folder else path
        if ids_file is None:
            if folder is None and path.exists():
                raise InputError(f"{path}: an index made elsewhere needs its ids too (--ids FILE.txt)")
            ids_file = path / IDS_FILE
        for file in (faiss_file, Path(ids_file)):
            if not file.is_file():
                raise InputError(f"no such file {file}")
        facts = _read_json(folder / JSON_FILE) if folder and (folder / JSON_FILE).is_file() else {}
        try:
            index = faiss.read_index(str(faiss_file), faiss.IO_FLAG_MMAP_IFC if memory_mapped else 0)
        except RuntimeError as error:
            raise InputError(f"{faiss_file}: not a FAISS index, or cut off ({_last_words(error)})") from None
        try:
            ids = Path(ids_file).read_text("utf-8").splitlines()
        except UnicodeDecodeError:
            raise InputError(f"{ids_file}: not UTF-8") from None
        for fact, found in (("dim", index.d), ("count", index.ntotal)):
            if facts.get(fact, found) != found:
                raise InputError(f"{path}: {JSON_FILE} says {fact} {facts[fact]}, {FAISS_FILE} has {found}")
        return cls(
            index, ids, fingerprint=facts.get("fingerprint"), corpus_sha256=facts.get("corpus_sha256"), name=str(path)
        )

    def save(self, folder: str | Path, *, overwrite: bool = False) -> None:
        """Write the index folder, whole or not at all."""
        facts = {
            "fingerprint": self.fingerprint,
            "dim": self.dim,
            "count": len(self.ids),
            "corpus_sha256": self.corpus_sha256,
        }
        if broken := next((pid for pid in self.ids if len(pid.splitlines()) != 1), None):
            raise InputError(f"passage id {broken!r} holds a line break, which {IDS_FILE} cannot")
        with new_folder(folder, overwrite=overwrite) as temporary:
            faiss.write_index(self.faiss, str(temporary / FAISS_FILE))
            (temporary / IDS_FILE).write_text("".join(f"{pid}\n" for pid in self.ids), "utf-8")
            (temporary / JSON_FILE).write_text(json.dumps(facts, indent=1) + "\n", "utf-8")

    def __len__(self) -> int:
        return len(self.ids)

    def __contains__(self, passage_id: object) -> bool:
        return passage_id in self.row

    @property
    def dim(self) -> int:
        return self.faiss.d

    def vectors(self) -> np.ndarray:
        """All vectors, float32 [passages, dim], in row order (decoded, where the index compresses them)."""
        self._make_rows_accessible()
        return self.faiss.reconstruct_n(0, len(self))

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, list[list[str]]]:
        """Return scores [queries, k] and passage ids, best first; k is cut to the number of passages.

        Args:
            queries: vectors [queries, dim].
        """
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        scores, rows = self.faiss.search(queries, min(k, len(self)))
        if self._has_distances:  # |q - x|^2 = |q|^2 + 1 - 2 q x
            scores = (1 + (queries**2).sum(axis=1, keepdims=True) - scores) / 2
        return scores, [[self.ids[row] for row in hits if row >= 0] for hits in rows]

    def _check_lengths(self) -> None:
        """Raise InputError unless a sample of the vectors has length 1."""
        rows = np.unique(np.linspace(0, len(self) - 1, LENGTHS_CHECKED).astype(np.int64))
        self._make_rows_accessible()
        lengths = np.linalg.norm(self.faiss.reconstruct_batch(rows), axis=1)
        if (worst := float(np.abs(lengths - 1).max())) > LENGTH_TOLERANCE:
            raise InputError(f"{self.name}: its metric is L2 and its vectors do not have length 1 (off by up to "
                             f"{worst:.2g}), so that it does not rank by the inner product")  # fmt: skip

    def _make_rows_accessible(self) -> None:
        inner = _inner(self.faiss)
        if isinstance(inner, faiss.IndexIVF):  # it finds rows through this
            inner.make_direct_map()

    def time_search(self, queries: np.ndarray, k: int) -> float:
        """Return the median time in ms of a search, each query [queries, dim] by itself."""
        times = []
        for query in queries[:, None]:
            started = time.perf_counter()
            self.search(query, k)
            times.append((time.perf_counter() - started) * 1e3)
        return statistics.median(times)

    def check(self, model: "ElasticModel", encoder: "Callable[[], ElasticModel] | None" = None) -> None:
        """Raise InputError unless the index holds vectors of what encodes this model's passages.

        An index of unknown origin (no fingerprint) passes if its dim does; ``check_sample`` is for those.

        Args:
            encoder: loads what encodes the passages. It is called only where index and model hold fingerprints of
                different formats, which cannot be compared without it; the index then takes the model's.
        """
        dim = model.config.vector_size
        if self.dim != dim:
            raise InputError(f"{self.name}: its vectors have dim {self.dim}, the model's {dim}")
        expected = model.config.passages.fingerprint or model.fingerprint()
        if self.fingerprint not in (None, expected) and encoder is not None:
            whole = encoder()
            if whole.has_fingerprint(self.fingerprint) and whole.has_fingerprint(expected):
                self.fingerprint = expected
        if self.fingerprint not in (None, expected):
            raise InputError(
                f"{self.name}: its passages were encoded by another model (fingerprint {self.fingerprint[:12]}, "
                f"this model needs {expected[:12]}); make one with `elasticlm index`"
            )

    def check_against(
        self,
        model: "ElasticModel",
        encoder: "Callable[[], ElasticModel]",
        corpora: "Callable[[], Sequence[Corpus]] | None",
    ) -> None:
        """Check that the index goes with a model, whoever made it. Raises InputError where it does not.

        An index with a fingerprint is checked by that, any other by a sample of its passages, encoded again; it takes
        the encoder's fingerprint then.

        Args:
            encoder: loads what encodes the model's passages.
            corpora: loads what its passages may be in; None where no data was given.
        """
        self.check(model, encoder)
        if self.fingerprint is not None:
            return
        if corpora is None:
            raise InputError(f"{self.name}: made elsewhere (no fingerprint); give its corpus with --data SPEC, so that "
                             "some of its passages can be compared")  # fmt: skip
        passages = {pid: text for corpus in corpora() for pid, text in zip(corpus.ids, corpus.passages, strict=True)}
        whole = encoder()
        cosine = self.check_sample(passages, lambda texts: whole.embed(texts, kind="passage").numpy())
        say(f"{self.name}: no fingerprint; a sample of its passages has a mean cosine of {cosine:.3f}")
        self.fingerprint = whole.fingerprint()

    def check_sample(self, passages: Mapping[str, str], embed: Callable[[list[str]], np.ndarray]) -> float:
        """Return the mean cosine between 16 of the index's vectors and the same passages encoded now.

        For an index made elsewhere. Raises InputError where the mean is below .95 or no passage can be found.

        Args:
            passages: passage by id.
            embed: passages -> vectors [passages, dim] of the model that should have made the index.
        """
        known = [pid for pid in self.ids if passages.get(pid)]
        if not known:
            raise InputError(f"{self.name}: none of its passage ids (such as {self.ids[0]!r}) is in the data")
        chosen = [known[i * len(known) // SAMPLE] for i in range(SAMPLE)] if len(known) > SAMPLE else known
        stored = self.vectors()[[self.row[pid] for pid in chosen]]
        fresh = np.asarray(embed([passages[pid] for pid in chosen]), dtype=np.float32)
        lengths = np.linalg.norm(stored, axis=1) * np.linalg.norm(fresh, axis=1)
        cosine = float(((stored * fresh).sum(1) / np.maximum(lengths, 1e-12)).mean())
        if not cosine >= LEAST_COSINE:
            raise InputError(
                f"{self.name}: not made by this teacher: {len(chosen)} of its passages, encoded anew, have a mean "
                f"cosine of {cosine:.3f} with it, expected at least {LEAST_COSINE}"
            )
        return cosine


def _inner(index: faiss.Index) -> faiss.Index:
    """Return the index behind a transformation of its vectors."""
    return faiss.downcast_index(index.index) if isinstance(index, faiss.IndexPreTransform) else index


def own_numbers(index: faiss.Index) -> np.ndarray | None:
    """Return the numbers that an index was given for its vectors [vectors], in row order; None if it has none."""
    if isinstance(index, faiss.IndexIDMap):
        return faiss.vector_to_array(index.id_map)
    if isinstance(inner := _inner(index), faiss.IndexIVF):
        lists: Any = inner.invlists
        return np.concatenate([
            faiss.rev_swig_ptr(lists.get_ids(number), lists.list_size(number)).copy()
            for number in range(lists.nlist) if lists.list_size(number)
        ])  # fmt: skip
    return None


def _ids_of(numbers: np.ndarray, ids: Sequence[str], name: str) -> list[str]:
    """Return the id of each number: its line. Raises InputError if a number has none, or two vectors have the same."""
    if numbers.min() < 0 or numbers.max() >= len(ids):
        wrong = numbers[(numbers < 0) | (numbers >= len(ids))][0]
        raise InputError(f"{name}: its own numbers are no lines of the ids file, such as {wrong} of {len(ids)} lines")
    if len(np.unique(numbers)) < len(numbers):
        raise InputError(f"{name}: two of its vectors have the same number")
    return [ids[number] for number in numbers.tolist()]


def _read_json(file: Path) -> dict:
    try:
        facts = json.loads(file.read_text("utf-8"))
    except ValueError as error:
        raise InputError(f"{file}: not JSON ({error})") from None
    if not isinstance(facts, dict):
        raise InputError(f"{file}: expected an object with fingerprint, dim, count and corpus_sha256")
    return facts


def _last_words(error: RuntimeError) -> str:
    """FAISS names functions and source lines first; what happened comes last."""
    return str(error).strip().splitlines()[-1].rpartition(": ")[2]
