"""What users ask, and how good an answer is: the workloads of the online simulation."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from elasticlm.benchmarks.replay import Request, text_request
from elasticlm.errors import InputError
from elasticlm.retrieval.measures import per_query, ranking

if TYPE_CHECKING:
    from pathlib import Path

    from elasticlm.retrieval.data_specs import RetrievalData
    from elasticlm.retrieval.passage_index import PassageIndex

RELATED_TOKENS = 128
RELATED_QUERIES = 100
DEPTH = 10


@dataclass(frozen=True)
class Workload:
    """Requests with judgements.

    `measure` is the quality of one answer (an ir_measures name). `own` says which passage a query is, where it is one:
    that passage does not count among its hits. `lists` are the passages sent with each query, where they are reranked.
    """

    name: str
    measure: str
    requests: list[Request]
    qrels: dict[str, dict[str, int]]
    own: dict[str, str]
    lists: dict[str, list[str]] | None = None

    def quality(self, query_ids: Sequence[str], bodies: Sequence[bytes], index: "PassageIndex | None") -> np.ndarray:
        """Return the quality [answers] of what the server answered: hits, scores, or embeddings to search with."""
        hits = self._hits(query_ids, [json.loads(body) for body in bodies], index)
        qrels, run = {}, {}
        for number, (query_id, found) in enumerate(zip(query_ids, hits, strict=True)):
            row = str(number)
            qrels[row] = self.qrels[query_id]
            others = [passage_id for passage_id in found if passage_id != self.own.get(query_id)][:DEPTH]
            run[row] = {passage_id: float(-rank) for rank, passage_id in enumerate(others)}
        return per_query(qrels, run, [self.measure])[self.measure]

    def _hits(self, query_ids: Sequence[str], answers: list[dict], index: "PassageIndex | None") -> list[list[str]]:
        if self.lists is not None:
            scored = [dict(zip(self.lists[qid], one["scores"], strict=True))
                      for qid, one in zip(query_ids, answers, strict=True)]  # fmt: skip
            return [ranking(scores) for scores in scored]
        if not answers or "hits" in answers[0]:
            return [[hit["id"] for hit in answer["hits"]] for answer in answers]
        vectors = np.array([answer["embedding"] for answer in answers], dtype=np.float32)
        assert index is not None, "embeddings are judged by an index"
        return index.search(vectors, self.depth)[1]

    @property
    def depth(self) -> int:
        """How many hits an answer needs."""
        return DEPTH + bool(self.own)


Shorten = Callable[[str], str | None]
"""Cuts a passage, or returns None if it is to be left out."""


def shortener(artifact: "Path", tokens: int | None) -> Shorten:
    """Return what cuts a text to so many tokens of the artifact's tokenizer and leaves shorter ones out.

    Without a number of tokens, texts are cut to RELATED_TOKENS and none is left out.
    """
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(artifact / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(tokens or RELATED_TOKENS)

    def shorten(text: str) -> str | None:
        encoded = tokenizer.encode(text)
        if tokens and len(encoded.ids) < tokens:
            return None
        return text[: max(end for _, end in encoded.offsets)]

    return shorten


def query_workload(data: "RetrievalData", *, hits: bool, shorten: Shorten) -> Workload:
    """Users send the split's queries; an answer's quality is RR@10."""
    k = DEPTH + data.has_self_hits if hits else 0
    requests = [text_request(query_id, text, k) for query_id, text in zip(data.query_ids, data.queries, strict=True)]
    own = {query_id: query_id for query_id in data.query_ids} if data.has_self_hits else {}
    return Workload("query", "RR@10", requests, data.qrels, own=own)


def related_workload(data: "RetrievalData", *, hits: bool, shorten: Shorten) -> Workload:
    """Users ask for "more like this": a passage is the query, the other passages of its title are relevant; nDCG@10."""
    of_title: dict[str, list[str]] = {}
    for passage_id, title in zip(data.passage_ids, data.titles, strict=True):
        if title.strip():
            of_title.setdefault(title, []).append(passage_id)
    qrels = {
        own: {other: 1 for other in group if other != own}
        for group in of_title.values()
        if len(group) > 1
        for own in group
    }
    passages = dict(zip(data.passage_ids, data.passages, strict=True))
    texts = {own: text for own in qrels if (text := shorten(passages[own])) is not None}
    if len(texts) < RELATED_QUERIES:
        raise InputError(
            f"{data.spec}: {len(texts)} passages share a title with another one and are long enough; "
            f"the workload 'related' needs at least {RELATED_QUERIES}"
        )
    k = DEPTH + 1 if hits else 0
    requests = [text_request(own, text, k) for own, text in texts.items()]
    return Workload("related", "nDCG@10", requests, qrels, own={own: own for own in qrels})


def rerank_workload(data: "RetrievalData", count: int) -> Workload:
    """Users send the split's queries, each with the best `count` passages by BM25; an answer's quality is RR@10."""
    from elasticlm.retrieval.bm25 import bm25_top

    rows, _ = bm25_top(data.queries, data.passages, min(count + data.has_self_hits, len(data.passages)))
    requests, lists = [], {}
    for query_id, text, own in zip(data.query_ids, data.queries, rows.tolist(), strict=True):
        own = [row for row in own if data.keep_self_hits or data.passage_ids[row] != query_id][:count]
        body = {"query": text, "passages": [data.passages[row] for row in own]}
        requests.append(Request(query_id, json.dumps(body, ensure_ascii=False)))
        lists[query_id] = [data.passage_ids[row] for row in own]
    return Workload(f"rerank:{count}", "RR@10", requests, data.qrels, own={}, lists=lists)


WORKLOADS = {"query": query_workload, "related": related_workload}
RERANK = "rerank:"


def build_workload(name: str, data: "RetrievalData", *, hits: bool, shorten: Shorten) -> Workload:
    """Return the workload called `name`; `hits`: the server searches its own index, else it answers embeddings.

    `shorten` is for the passages of the workload `related`.
    """
    if name.startswith(RERANK):
        count = name.removeprefix(RERANK)
        if not count.isdigit() or not 0 < int(count) <= len(data.passages):
            raise InputError(f"workload {name!r}: expected rerank:N with N from 1 to {len(data.passages):,} passages")
        return rerank_workload(data, int(count))
    if name not in WORKLOADS:
        raise InputError(f"workload {name!r}: expected one of {', '.join(WORKLOADS)} or rerank:N")
    return WORKLOADS[name](data, hits=hits, shorten=shorten)
