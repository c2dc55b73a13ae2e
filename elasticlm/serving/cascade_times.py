"""Service times of a two-stage pipeline: a retriever that searches an index, and a reranker of its hits."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

from elasticlm.backend import counted_tokens
from elasticlm.model.elastic_model import ElasticModel
from elasticlm.schedule.cascade import MeasuredPair, PairTable
from elasticlm.schedule.latency import LatencyTable

if TYPE_CHECKING:
    from elasticlm.retrieval.passage_index import PassageIndex

SAMPLE = 64  # searches used to estimate the length of the passages in a list
TIMED = 5  # searches used to estimate the time of one search


class Passages(Protocol):
    """Texts of an index's passages by row, either a list or PassageTexts."""

    def __len__(self) -> int: ...

    def __getitem__(self, row: int, /) -> str: ...


def pair_table(
    pairs: Sequence[MeasuredPair],
    retriever: tuple[ElasticModel, LatencyTable],
    reranker: tuple[ElasticModel, LatencyTable],
    index: "PassageIndex",
    passages: Passages,
    *,
    backend: str,
) -> PairTable:
    """Return the service times of pairs of levels, with passage lengths and search time measured on this index.

    Args:
        retriever, reranker: each model with its latency table for the setup in which it is served.
        backend: the backend that runs the reranker.
    """
    depth = max(pair.depth for pair in pairs)
    tokens = tokens_of_lists(retriever[0], reranker[0], index, passages, depth, backend=backend)
    texts = [passages[row] for row in range(min(TIMED, len(passages)))]
    queries = retriever[0].embed(texts, level=retriever[0].structures.smallest)
    return PairTable(
        pairs, retriever[1], reranker[1],
        passage_tokens=tokens - 1,  # one [CLS] for both texts of a pair
        max_tokens=reranker[0].config.max_tokens.pair,
        search_ms=index.time_search(queries.numpy(), depth),
    )  # fmt: skip


def tokens_of_lists(
    retriever: ElasticModel,
    reranker: ElasticModel,
    index: "PassageIndex",
    passages: Passages,
    depth: int,
    *,
    backend: str,
) -> int:
    """Return the tokens per passage that the backend computes for a list of ``depth`` hits: a mean over searches.

    The sample consists of real searches and not of random passages, because hits are longer than average: long passages
    are close to more queries.
    """
    rows = np.linspace(0, len(passages) - 1, min(SAMPLE, len(passages))).astype(int)
    queries = retriever.embed([passages[row] for row in rows], level=retriever.structures.smallest).numpy()
    lists = [hits for hits in index.search(queries, depth)[1] if hits]
    ids = list(dict.fromkeys(pid for hits in lists for pid in hits))
    texts = [passages[row] for row in index.ids.rows(ids)]
    lengths = reranker.tokenize_pairs(texts, None)["attention_mask"].sum(1)
    lengths = lengths.clamp(max=reranker.config.max_tokens.passage).tolist()
    length = dict(zip(ids, lengths, strict=True))
    return math.ceil(np.mean([counted_tokens(backend, [length[pid] for pid in hits]) for hits in lists]))
