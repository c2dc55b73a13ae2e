"""What a data spec gives: passages, queries and judgements."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from elasticlm.errors import InputError

Qrels = dict[str, dict[str, int]]


@dataclass(frozen=True)
class Corpus:
    """Passages in the order of their source; a title may be empty and may be shared by several passages."""

    ids: list[str]
    titles: list[str]
    texts: list[str]

    @property
    def passages(self) -> list[str]:
        """What is encoded: ``(title + " " + text).strip()``."""
        return [f"{title} {text}".strip() for title, text in zip(self.titles, self.texts, strict=True)]

    @property
    def sha256(self) -> str:
        """SHA-256 over ids and passages in order: another corpus has another value."""
        return _sha256(f"{pid}\t{passage}" for pid, passage in zip(self.ids, self.passages, strict=True))


@dataclass(frozen=True)
class RetrievalData:
    """One split: the whole corpus, and the queries that the split judges.

    ``qrels[query_id][passage_id]`` is the grade; positive means above 0. ``candidates`` holds, where the source has
    them, the labelled passages that a reranker orders for each query.
    """

    spec: str
    split: str
    passage_ids: list[str]
    titles: list[str]
    passages: list[str]
    query_ids: list[str]
    queries: list[str]
    qrels: Qrels
    candidates: Qrels | None = None

    def __post_init__(self) -> None:
        if not any(grade > 0 for grades in self.qrels.values() for grade in grades.values()):
            raise InputError(f"{self.spec}: split {self.split} judges no passage as relevant (score above 0)")

    @classmethod
    def of(
        cls,
        spec: str,
        split: str,
        corpus: Corpus,
        texts: Mapping[str, str],
        qrels: Qrels,
        candidates: Qrels | None = None,
    ) -> "RetrievalData":
        """A split from its judgements, in their order: the whole corpus, and the ``texts`` of the judged queries."""
        return cls(
            spec=spec,
            split=split,
            passage_ids=corpus.ids,
            titles=corpus.titles,
            passages=corpus.passages,
            query_ids=list(qrels),
            queries=[texts[qid] for qid in qrels],
            qrels=qrels,
            candidates=candidates,
        )

    @property
    def split_sha256(self) -> str:
        return split_sha256(self.query_ids, self.qrels)


def split_sha256(query_ids: Sequence[str], qrels: Mapping[str, Mapping[str, int]]) -> str:
    """SHA-256 over a split's queries and judgements, whatever order they came in."""
    return _sha256(
        f"{qid}\t{pid}\t{grade}" for qid in sorted(query_ids) for pid, grade in sorted(qrels.get(qid, {}).items())
    )


def shuffled(texts: list[str], seed: int | None) -> list[str]:
    """The texts in a random order; as they are where there is no seed."""
    if seed is None:
        return texts
    return [texts[i] for i in np.random.default_rng(seed).permutation(len(texts))]


def sha1_share(text: str, shares: int) -> int:
    """Which of ``shares`` equal shares a text falls into: the same on every machine, whatever else is there."""
    return int(hashlib.sha1(text.encode()).hexdigest(), 16) % shares


def cache_folder() -> Path:
    """Where made and parsed data is kept: ``$XDG_CACHE_HOME/elasticlm``, else ``~/.cache/elasticlm``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "elasticlm"


def _sha256(lines) -> str:
    digest = hashlib.sha256()
    for line in lines:
        digest.update(line.encode() + b"\n")
    return digest.hexdigest()
