"""An index in shards: which passages each holds, and how one is written.

A shard is encoded and written by one worker, whole or not at all, in OUTPUT.shards/KEY/shard-00000. KEY is a hash of
all that the shards depend on: the encoder's fingerprint, the corpus, the kind of index and the bounds of the shards.
So an interrupted run continues with the shards that are missing, and those of another model or corpus are never used.
When all are there, the folder is renamed to the output.
"""

import argparse
import hashlib
import json
import socket
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import faiss
import numpy as np
import torch

from elasticlm.backend.onnx_export import on_onnx_runtime
from elasticlm.errors import InputError
from elasticlm.files import publish_folder
from elasticlm.model.elastic_model import ElasticModel
from elasticlm.model.teacher import load_model, passage_encoder
from elasticlm.retrieval.corpus import Corpus
from elasticlm.retrieval.data_specs import load_corpus
from elasticlm.retrieval.faiss_files import empty_index, inner_index
from elasticlm.retrieval.index_folder import shard_name, write_shard_counts
from elasticlm.retrieval.passage_index import PassageIndex
from elasticlm.trainer import stored_vectors
from elasticlm.trainer.inputs import teacher_settings
from elasticlm.trainer.processes import Processes
from elasticlm.trainer.training_texts import Counter, UntokenizedPassages, encode


@dataclass(frozen=True)
class Shard:
    """Some consecutive passages of a corpus, empty ones not counted.

    Attributes:
        rows: their first row, and the one after their last.
        sha256: of their ids and passages.
    """

    number: int
    rows: tuple[int, int]
    sha256: str

    def __len__(self) -> int:
        return self.rows[1] - self.rows[0]


@dataclass(frozen=True)
class ShardedIndex:
    """What the workers are given; every machine of a cluster finds the same under its paths.

    Attributes:
        model, teacher, settings, data: as the command's options name them, with absolute paths.
        folder: where the shards are written.
        fingerprint: of the encoder.
        kind: FAISS factory string.
        threads: of each worker.
    """

    model: str
    teacher: str | None
    settings: dict[str, str | None]
    data: str
    folder: str
    shards: tuple[Shard, ...]
    dim: int
    fingerprint: str
    corpus_sha256: str
    kind: str
    seed: int
    threads: int = 1

    def path(self, shard: Shard) -> Path:
        """The folder of a shard."""
        return Path(self.folder, shard_name(shard.number))

    def is_written(self, shard: Shard) -> bool:
        """Whether a shard is there and whole; its folder's name says what it was made from."""
        if not self.path(shard).is_dir():
            return False
        try:
            PassageIndex.load(self.path(shard), memory_mapped=True)
        except InputError:
            return False
        return True

    def publish(self, output: str | Path, *, overwrite: bool) -> PassageIndex:
        """Make the folder of the shards, all of which are written, the output. Return it, memory-mapped."""
        folder = Path(self.folder)
        for file in folder.glob(".*"):  # locks of workers that were killed
            file.unlink()
        counts = [len(shard) for shard in self.shards]
        write_shard_counts(folder, counts, self.dim, self.fingerprint, self.corpus_sha256)
        publish_folder(folder, output, overwrite=overwrite)
        return PassageIndex.load(output, memory_mapped=True)


class ShardWriter:
    """What a worker does. Model and corpus are loaded when the first shard is written, once."""

    def __init__(self, index: ShardedIndex) -> None:
        self.index = index

    @cached_property
    def encoder(self) -> ElasticModel:
        """What encodes the passages. Raises InputError where this machine has another model under its name."""
        torch.set_num_threads(self.index.threads)
        faiss.omp_set_num_threads(self.index.threads)
        encoder = passage_encoder(load_model(self.index.model, **self.index.settings), self.index.teacher)
        if encoder.fingerprint() != self.index.fingerprint:
            raise InputError(f"{socket.gethostname()}: {self.index.model} is another model there")
        return encoder

    @cached_property
    def corpus(self) -> Corpus:
        """The passages that are not empty."""
        return load_corpus(self.index.data).findable

    @cached_property
    def processes(self) -> Processes:
        """This process alone."""
        return Processes("fp32")

    def write(self, shard: Shard, counter: Counter) -> None:
        """Encode the passages of a shard and write it; replaces a broken one.

        Raises InputError where this machine has other passages, or the shard cannot be written.
        """
        passages = self.corpus.part(range(*shard.rows))
        if passages.sha256 != shard.sha256:
            raise InputError(f"{socket.gethostname()}: {self.index.data} has other passages there")
        texts = UntokenizedPassages(self.encoder, passages.passages)
        starts = range(0, len(shard), stored_vectors.BLOCK)
        with on_onnx_runtime(self.encoder):
            PassageIndex.write(
                self.index.path(shard),
                (self._vectors(texts, start, counter) for start in starts),
                passages.ids,
                dim=self.index.dim,
                fingerprint=self.index.fingerprint,
                corpus_sha256=self.index.corpus_sha256,
                kind=self.index.kind,
                seed=self.index.seed,
                overwrite=True,
            )

    def _vectors(self, texts: UntokenizedPassages, start: int, counter: Counter) -> np.ndarray:
        block = texts.part(start, min(start + stored_vectors.BLOCK, len(texts)))
        return encode(self.encoder, block, self.processes, precision="fp32", bar=counter).numpy()


def planned(
    args: argparse.Namespace, corpus: Corpus, corpus_sha256: str, encoder: ElasticModel, teacher: str | None
) -> ShardedIndex:
    """Return the index that ``elasticlm index`` is to write.

    Args:
        args: the command's options.
        corpus: the passages that are not empty.
        teacher: where the artifact's teacher is.

    Raises InputError where a shard has too few passages for this kind of index.
    """
    dim, fingerprint = encoder.config.vector_size, encoder.fingerprint()
    parts = bounds(len(corpus.ids), args.shard_size)
    _check_lists(args.kind, dim, min(map(len, parts)))
    shards = tuple(Shard(number, (rows.start, rows.stop), corpus.part(rows).sha256)
                   for number, rows in enumerate(parts))  # fmt: skip
    depends_on = [fingerprint, corpus_sha256, args.kind, args.seed, [asdict(shard) for shard in shards]]
    key = hashlib.sha256(json.dumps(depends_on).encode()).hexdigest()[:32]
    return ShardedIndex(
        model=_absolute(args.model),
        teacher=_absolute(teacher) if teacher else None,
        settings=teacher_settings(args),
        data=_absolute_spec(args.data),
        folder=str(unfinished_folder(args.output) / key),
        shards=shards,
        dim=dim,
        fingerprint=fingerprint,
        corpus_sha256=corpus_sha256,
        kind=args.kind,
        seed=args.seed,
    )


def unfinished_folder(output: str | Path) -> Path:
    """Where the shards of unfinished runs are kept, each run's in a folder of its own."""
    output = Path(output).resolve()
    return output.with_name(output.name + ".shards")


def bounds(passages: int, shard_size: int) -> list[range]:
    """Cut rows into as few shards as possible, of nearly the same size: no shard is too small to be trained.

    >>> bounds(10, 4)
    [range(0, 3), range(3, 6), range(6, 10)]
    """
    shards = -(-passages // shard_size)
    return [range(passages * i // shards, passages * (i + 1) // shards) for i in range(shards)]


def _check_lists(kind: str, dim: int, passages: int) -> None:
    inner = inner_index(empty_index(dim, kind))
    if isinstance(inner, faiss.IndexIVF) and inner.nlist > passages:
        raise InputError(f"--kind {kind}: each shard is trained by itself, and {inner.nlist:,} lists need at least as "
                         f"many passages; the smallest shard has {passages:,}: give a larger --shard-size")  # fmt: skip


def _absolute(name: str) -> str:
    """A model's folder as an absolute path, since workers have other working directories; a hub name as it is."""
    return str(Path(name).resolve()) if Path(name).is_dir() else name


def _absolute_spec(spec: str) -> str:
    kind, _, rest = spec.partition(":")
    return f"{kind}:{Path(rest).resolve()}" if rest and Path(rest).exists() else spec
