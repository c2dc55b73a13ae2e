"""What a data spec gives: passages, queries and judgements."""

import hashlib
import os
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar

import numpy as np

from elasticlm.command import say
from elasticlm.errors import InputError
from elasticlm.retrieval.columns import KeptColumn, PassageColumn

Qrels = dict[str, dict[str, int]]


@dataclass(frozen=True)
class Corpus:
    """Passages in the order of their source; a title may be empty and may be shared by several passages.

    The columns are lists, or stay where they are (see elasticlm.retrieval.columns); so do those that are derived.
    """

    ids: Sequence[str]
    titles: Sequence[str]
    texts: Sequence[str]

    @property
    def passages(self) -> Sequence[str]:
        """What is encoded: ``(title + " " + text).strip()``."""
        return PassageColumn(self.titles, self.texts)

    @cached_property
    def findable(self) -> "Corpus":
        """The passages that are not empty; an empty one is part of the corpus, but no search returns it."""
        rows = np.flatnonzero(np.fromiter(map(bool, self.passages), bool, len(self.ids)))
        if len(rows) == len(self.ids):
            return self
        return Corpus(*(KeptColumn(column, rows) for column in (self.ids, self.titles, self.texts)))

    def part(self, rows: range) -> "Corpus":
        """The passages of consecutive rows; their texts stay where they are."""
        kept = np.arange(rows.start, rows.stop)
        return Corpus(*(KeptColumn(column, kept) for column in (self.ids, self.titles, self.texts)))

    @property
    def sha256(self) -> str:
        """SHA-256 over ids and passages in order: another corpus has another value."""
        return _sha256(f"{pid}\t{passage}" for pid, passage in zip(self.ids, self.passages, strict=True))


class Gaps:
    """Counts what a public set lacks, and says so in one line.

    Judged passages that the corpus lacks stay relevant, and are never found; neither are empty passages. Judged queries
    without a text are left out.
    """

    _said: ClassVar[set[str]] = set()

    def __init__(self, spec: str) -> None:
        self.spec = spec
        self._counts: dict[str, int] = {}

    def count(self, what: str, number: int) -> None:
        """Add to a kind; ``what`` is written for several, such as "judged passages are not in the corpus"."""
        if number:
            self._counts[what] = number

    def without_queries(self, qrels: Qrels, texts: Container[str]) -> Qrels:
        """Return the judgements of the queries that have a text. Raises InputError if none has."""
        kept = {qid: grades for qid, grades in qrels.items() if qid in texts}
        if not kept:
            raise InputError(f"{self.spec}: none of the judged queries, such as {next(iter(qrels))!r}, has a text")
        self.count("judged queries without a text are left out", len(qrels) - len(kept))
        return kept

    def say(self) -> None:
        """Write the line, unless nothing was counted or the same has been said before."""
        line = f"{self.spec}: " + ", ".join(f"{number:,} {what}" for what, number in self._counts.items())
        if self._counts and line not in self._said:
            self._said.add(line)
            say(line)


@dataclass(frozen=True)
class RetrievalData:
    """One split: the passages of the corpus that are not empty, and the queries that the split judges.

    Attributes:
        qrels: ``qrels[query_id][passage_id]`` is the grade; positive means above 0. It may judge passages that are not
            in the corpus.
        candidates: the labelled passages that a reranker orders for each query, if the source has any.
        keep_self_hits: whether a query may find itself, see ``without_self``.
        answers: the answers of each question, for sets whose passages count as relevant if they contain one of them
            (elasticlm.retrieval.answers); such a set need not have judgements. None: judgements alone.
        corpus_spec: the data spec of the passages, where they are those of another set.
    """

    spec: str
    split: str
    passage_ids: Sequence[str]
    titles: Sequence[str]
    passages: Sequence[str]
    query_ids: list[str]
    queries: list[str]
    qrels: Qrels
    candidates: Qrels | None = None
    keep_self_hits: bool = False
    answers: Mapping[str, Sequence[str]] | None = None
    corpus_spec: str | None = None

    def __post_init__(self) -> None:
        if self.answers is not None:
            return
        relevant = [pid for grades in self.qrels.values() for pid, grade in grades.items() if grade > 0]
        if not relevant:
            raise InputError(f"{self.spec}: split {self.split} judges no passage as relevant (score above 0)")
        if set(relevant).isdisjoint(self.passage_ids):
            raise InputError(f"{self.spec}: none of the passages that split {self.split} judges as relevant, such as "
                             f"{relevant[0]!r}, is in the corpus")  # fmt: skip

    @cached_property
    def judged(self) -> Qrels:
        """The judgements of the queries that have a relevant passage."""
        return {qid: grades for qid, grades in self.qrels.items() if any(grade > 0 for grade in grades.values())}

    def text(self, row: int) -> str:
        """The text of a passage without its title."""
        return self.passages[row].removeprefix(self.titles[row].lstrip())

    def over(self, spec: str, corpus: Corpus) -> "RetrievalData":
        """The same queries and judgements over the passages of another set."""
        texts = dict(zip(self.query_ids, self.queries, strict=True))
        data = RetrievalData.of(self.spec, self.split, corpus, texts, self.qrels, self.candidates, self.answers)
        return replace(data, keep_self_hits=self.keep_self_hits, corpus_spec=spec)

    @cached_property
    def has_self_hits(self) -> bool:
        """Whether some query occurs in the corpus under its own id (ArguAna, Quora) and must not find itself."""
        return not self.keep_self_hits and not set(self.query_ids).isdisjoint(self.passage_ids)

    def without_self(self, query_id: str, hits: Mapping[str, float]) -> dict[str, float]:
        """Return a query's hits, passage ids with scores, without the query itself."""
        return {pid: score for pid, score in hits.items() if self.keep_self_hits or pid != query_id}

    @classmethod
    def of(
        cls,
        spec: str,
        split: str,
        corpus: Corpus,
        texts: Mapping[str, str],
        qrels: Qrels,
        candidates: Qrels | None = None,
        answers: Mapping[str, Sequence[str]] | None = None,
    ) -> "RetrievalData":
        """A split from its judgements, in their order: the corpus, and the ``texts`` of the judged queries.

        What is missing is counted and said; candidates that are not in the corpus are left out.
        """
        gaps, findable = Gaps(spec), corpus.findable
        qrels = gaps.without_queries(qrels, texts)
        if judged := {pid for grades in qrels.values() for pid in grades}:
            gaps.count("judged passages are not in the corpus", len(judged.difference(corpus.ids)))
        gaps.count("passages are empty", len(corpus.ids) - len(findable.ids))
        if candidates is not None:
            found = {pid for grades in candidates.values() for pid in grades}.intersection(findable.ids)
            candidates = {qid: {pid: grade for pid, grade in candidates[qid].items() if pid in found}
                          for qid in qrels if candidates.get(qid)}  # fmt: skip
        gaps.say()
        return cls(
            spec=spec,
            split=split,
            passage_ids=findable.ids,
            titles=findable.titles,
            passages=findable.passages,
            query_ids=list(qrels),
            queries=[texts[qid] for qid in qrels],
            qrels=qrels,
            candidates=candidates,
            answers=None if answers is None else {qid: answers[qid] for qid in qrels},
        )

    @property
    def split_sha256(self) -> str:
        return split_sha256(self.query_ids, self.qrels, self.answers or {})


def split_sha256(
    query_ids: Sequence[str],
    qrels: Mapping[str, Mapping[str, int]],
    answers: Mapping[str, Sequence[str]] = MappingProxyType({}),
) -> str:
    """SHA-256 over a split's queries and judgements, and answers if there are any, whatever order they came in."""
    order = sorted(query_ids)
    judgements = (f"{qid}\t{pid}\t{grade}" for qid in order for pid, grade in sorted(qrels.get(qid, {}).items()))
    return _sha256(chain(judgements, (f"{qid}\t{answer}" for qid in order for answer in answers.get(qid, ()))))


def shuffled(texts: Sequence[str], seed: int | None) -> Iterable[str]:
    """The texts in a random order, each read when it is its turn; as they are where there is no seed."""
    if seed is None:
        return texts
    return (texts[i] for i in np.random.default_rng(seed).permutation(len(texts)))


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
