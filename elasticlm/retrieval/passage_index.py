"""The passage index: FAISS by inner product, with passage ids. Needs faiss and numpy only.

An index folder holds passages.faiss, ids.txt (one passage id a line, row order) and index.json (fingerprint of what
encoded the passages, dim, count, SHA-256 of the corpus), or shards of these. An index made elsewhere is a FAISS file
with an ids file. Its metric may be L2 if its vectors have length 1. If it numbers its vectors itself, number n is line
n of the ids file.
"""

import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import faiss
import numpy as np

from elasticlm.command import say
from elasticlm.errors import InputError
from elasticlm.files import new_folder
from elasticlm.retrieval.columns import first_repeat
from elasticlm.retrieval.faiss_files import (
    check_numbers,
    index_inside,
    make_index,
    make_rows_accessible,
    own_numbers,
    read_index,
    write_index,
)
from elasticlm.retrieval.faiss_shards import FaissShards
from elasticlm.retrieval.index_folder import (
    FAISS_FILE,
    IDS_FILE,
    JSON_FILE,
    new_index_folder,
    read_facts,
    shard_name,
    write_shard_counts,
)
from elasticlm.retrieval.passage_ids import PassageIds

if TYPE_CHECKING:
    from elasticlm.model.elastic_model import ElasticModel
    from elasticlm.retrieval.corpus import Corpus

SAMPLE, LEAST_COSINE = 16, 0.95
LENGTHS_CHECKED, LENGTH_TOLERANCE = 1000, 0.01
AT_ONCE = 4096  # ids that are looked up together


class PassageIndex:
    """Passages as vectors, searched by inner product.

    Args:
        index: a FAISS index, or several as one; its metric is the inner product, or L2 over vectors of length 1.
        ids: passage ids in the order of the index's numbers, which are its rows unless it was given others.
        fingerprint: of the model that encoded the passages; None where it is unknown.
        corpus_sha256: of the corpus; None where it is unknown.
        name: how errors call it.
    """

    def __init__(
        self,
        index: faiss.Index | FaissShards,
        ids: Sequence[str],
        *,
        fingerprint: str | None = None,
        corpus_sha256: str | None = None,
        name: str = "index",
    ) -> None:
        if not index.ntotal:
            raise InputError(f"{name}: holds no passage")
        ids = ids if isinstance(ids, PassageIds) else PassageIds(ids)
        if (numbers := own_numbers(index)) is not None:
            check_numbers(numbers, len(ids), name)
            if isinstance(index, faiss.IndexIDMap):  # an inverted file keeps its numbers
                index = index_inside(index)
                ids = PassageIds(ids[number] for number in numbers.tolist())
        if index.ntotal != len(ids):
            raise InputError(f"{name}: {index.ntotal} vectors, but {len(ids)} ids")
        self.faiss, self.ids, self.name = index, ids, name
        self._has_distances = index.metric_type == faiss.METRIC_L2
        if self._has_distances:
            self._check_lengths()
        elif index.metric_type != faiss.METRIC_INNER_PRODUCT:
            raise InputError(f"{name}: its metric is neither the inner product nor L2")
        self.fingerprint, self.corpus_sha256 = fingerprint, corpus_sha256
        if repeat := first_repeat(self.ids):
            raise InputError(f"{name}: duplicate id {self.ids[repeat[0]]!r}")

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
        index = make_index(vectors, kind, seed)
        return cls(index, ids, fingerprint=fingerprint, corpus_sha256=corpus_sha256)

    @classmethod
    def write(
        cls,
        folder: str | Path,
        blocks: Iterable[np.ndarray],
        ids: Sequence[str],
        *,
        dim: int,
        fingerprint: str | None,
        corpus_sha256: str | None,
        kind: str = "Flat",
        seed: int = 0,
        overwrite: bool = False,
    ) -> "PassageIndex":
        """Write the folder of an index that need not fit in memory, whole or not at all, and load it memory-mapped.

        The files are those of ``build`` and ``save``.

        Args:
            blocks: the vectors, FloatArrays [passages, dim], in row order.
        """
        with new_index_folder(folder, ids, dim, fingerprint, corpus_sha256, overwrite=overwrite) as temporary:
            write_index(temporary / FAISS_FILE, blocks, len(ids), dim, kind=kind, seed=seed)
        return cls.load(folder, memory_mapped=True)

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
        facts = read_facts(folder) if folder else {}
        if folder and "shards" in facts:
            return cls._load_shards(folder, facts, memory_mapped=memory_mapped)
        faiss_file = path / FAISS_FILE if folder else path
        if ids_file is None:
            if folder is None and path.exists():
                raise InputError(f"{path}: an index made elsewhere needs its ids too (--ids FILE.txt)")
            ids_file = path / IDS_FILE
        for file in (faiss_file, Path(ids_file)):
            if not file.is_file():
                raise InputError(f"no such file {file}")
        index = read_index(faiss_file, memory_mapped=memory_mapped)
        try:
            with open(ids_file, encoding="utf-8") as lines:
                ids = PassageIds(line.removesuffix("\n") for line in lines)
        except UnicodeDecodeError:
            raise InputError(f"{ids_file}: not UTF-8") from None
        for fact, found in (("dim", index.d), ("count", index.ntotal)):
            if facts.get(fact, found) != found:
                raise InputError(f"{path}: {JSON_FILE} says {fact} {facts[fact]}, {FAISS_FILE} has {found}")
        return cls(
            index, ids, fingerprint=facts.get("fingerprint"), corpus_sha256=facts.get("corpus_sha256"), name=str(path)
        )

    @classmethod
    def _load_shards(cls, folder: Path, facts: dict[str, Any], *, memory_mapped: bool) -> "PassageIndex":
        """Load a folder of shards. Raises InputError unless they are those that its index.json describes."""
        origin: dict[str, Any] = {name: facts.get(name) for name in ("fingerprint", "corpus_sha256")}
        shards: list[PassageIndex] = []
        for number, count in enumerate(facts["shards"]):
            place = folder / shard_name(number)
            if not place.is_dir():
                raise InputError(f"{folder}: {JSON_FILE} lists {len(facts['shards'])} shards, but {place.name} is "
                                 "missing")  # fmt: skip
            shard = cls.load(place, memory_mapped=memory_mapped)
            found = {"fingerprint": shard.fingerprint, "corpus_sha256": shard.corpus_sha256}
            for name, ours, theirs in (
                ("count", count, len(shard)),
                ("dim", facts.get("dim", shard.dim), shard.dim),
                *((name, origin[name], found[name]) for name in origin),
                ("metric", (shards or [shard])[0].faiss.metric_type, shard.faiss.metric_type),
            ):
                if ours != theirs:
                    raise InputError(f"{folder}: {place.name} does not belong to this index: its {name} is {theirs}, "
                                     f"expected {ours}")  # fmt: skip
            shards.append(shard)
        ids = PassageIds(chain.from_iterable(shard.ids for shard in shards))
        if facts.get("count", len(ids)) != len(ids):
            raise InputError(f"{folder}: {JSON_FILE} says count {facts['count']}, its shards have {len(ids)}")
        return cls(FaissShards([shard.faiss for shard in shards]), ids, **origin, name=str(folder))

    def save(self, folder: str | Path, *, overwrite: bool = False) -> None:
        """Write the index folder, whole or not at all; that of several shards as shards."""
        facts = self.dim, self.fingerprint, self.corpus_sha256
        if isinstance(self.faiss, FaissShards):
            origin = {"fingerprint": self.fingerprint, "corpus_sha256": self.corpus_sha256}
            with new_folder(folder, overwrite=overwrite) as temporary:
                for number, (shard, rows) in enumerate(zip(self.faiss.shards, self.faiss.rows, strict=True)):
                    ids = self.ids[rows.start : rows.stop]
                    PassageIndex(shard, ids, **origin, name=self.name).save(temporary / shard_name(number))
                write_shard_counts(temporary, list(map(len, self.faiss.rows)), *facts)
            return
        with new_index_folder(folder, self.ids, *facts, overwrite=overwrite) as temporary:
            faiss.write_index(self.faiss, str(temporary / FAISS_FILE))

    def __len__(self) -> int:
        return len(self.ids)

    def __contains__(self, passage_id: object) -> bool:
        return passage_id in self.ids

    @property
    def dim(self) -> int:
        return self.faiss.d

    def vectors(self, rows: np.ndarray | None = None) -> np.ndarray:
        """The vectors of these rows, float32 [rows, dim] (decoded, where the index compresses them); None: of all."""
        make_rows_accessible(self.faiss)
        return self.faiss.reconstruct_n(0, len(self)) if rows is None else self.faiss.reconstruct_batch(rows)

    def missing(self, ids: Sequence[str]) -> list[str]:
        """Return those of the ids that are not in the index."""
        parts = (ids[start : start + AT_ONCE] for start in range(0, len(ids), AT_ONCE))
        return [part[place] for part in parts for place in np.flatnonzero(self.ids.rows(part) < 0).tolist()]

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, list[list[str]]]:
        """Return scores [queries, k] and passage ids, best first, those of the same score in the order of their rows.

        k is cut to the number of passages.

        Args:
            queries: vectors [queries, dim].
        """
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        scores, rows = self.faiss.search(queries, min(k, len(self)))
        if self._has_distances:  # |q - x|^2 = |q|^2 + 1 - 2 q x
            scores = (1 + (queries**2).sum(axis=1, keepdims=True) - scores) / 2
        order = np.lexsort((rows, -scores))
        scores, rows = (np.take_along_axis(hits, order, axis=1) for hits in (scores, rows))
        return scores, [[self.ids.one(row) for row in hits if row >= 0] for hits in rows.tolist()]

    def _check_lengths(self) -> None:
        """Raise InputError unless a sample of the vectors has length 1."""
        rows = np.unique(np.linspace(0, len(self) - 1, LENGTHS_CHECKED).astype(np.int64))
        lengths = np.linalg.norm(self.vectors(rows), axis=1)
        if (worst := float(np.abs(lengths - 1).max())) > LENGTH_TOLERANCE:
            raise InputError(f"{self.name}: its metric is L2 and its vectors do not have length 1 (off by up to "
                             f"{worst:.2g}), so that it does not rank by the inner product")  # fmt: skip

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
        passages = self._sample([corpus.findable for corpus in corpora()])
        whole = encoder()
        cosine = self.check_sample(passages, lambda texts: whole.embed(texts, kind="passage").numpy())
        say(f"{self.name}: no fingerprint; a sample of its passages has a mean cosine of {cosine:.3f}")
        self.fingerprint = whole.fingerprint()

    def _sample(self, corpora: "Sequence[Corpus]") -> dict[str, str]:
        """Return up to 16 of the index's passages, spread evenly over those that the corpora hold, by id."""
        known = np.zeros(len(self), dtype=bool)
        for corpus in corpora:
            for start in range(0, len(corpus.ids), AT_ONCE):
                rows = self.ids.rows(corpus.ids[start : start + AT_ONCE])
                known[rows[rows >= 0]] = True
        rows = np.flatnonzero(known)
        chosen = {self.ids[row] for row in rows[np.arange(min(SAMPLE, len(rows))) * len(rows) // SAMPLE]}
        passages = (row for corpus in corpora for row in zip(corpus.ids, corpus.passages, strict=True))
        return {pid: text for pid, text in passages if pid in chosen}

    def check_sample(self, passages: Mapping[str, str], embed: Callable[[list[str]], np.ndarray]) -> float:
        """Return the mean cosine between 16 of the index's vectors and the same passages encoded now.

        For an index made elsewhere. Raises InputError where the mean is below 0.95 or no passage can be found.

        Args:
            passages: passage by id.
            embed: passages -> vectors [passages, dim] of the model that should have made the index.
        """
        known = [pid for pid in self.ids if passages.get(pid)]
        if not known:
            raise InputError(f"{self.name}: none of its passage ids (such as {self.ids[0]!r}) is in the data")
        chosen = [known[i * len(known) // SAMPLE] for i in range(SAMPLE)] if len(known) > SAMPLE else known
        stored = self.vectors(self.ids.rows(chosen))
        fresh = np.asarray(embed([passages[pid] for pid in chosen]), dtype=np.float32)
        lengths = np.linalg.norm(stored, axis=1) * np.linalg.norm(fresh, axis=1)
        cosine = float(((stored * fresh).sum(1) / np.maximum(lengths, 1e-12)).mean())
        if not cosine >= LEAST_COSINE:
            raise InputError(
                f"{self.name}: not made by this teacher: {len(chosen)} of its passages, encoded anew, have a mean "
                f"cosine of {cosine:.3f} with it, expected at least {LEAST_COSINE}"
            )
        return cosine
