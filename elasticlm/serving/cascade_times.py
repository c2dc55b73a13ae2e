"""A retriever and a reranker behind it, over one index: how long they take together."""

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

SAMPLE = 64  # searches by which it is judged how long a list's passages are
TIMED = 5  # searches by which it is judged how long one takes


class Passages(Protocol):
    """Texts of an index's passages, by row: a list, or PassageTexts."""

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
    """Return the service times of pairs of levels: lists as long as this index gives, the index's own time measured.

    Args:
        retriever, reranker: models, and their latency tables in the setup that is served.
        backend: what runs the reranker.
    """
    depth = max(pair.depth for pair in pairs)
    tokens = tokens_of_lists(retriever[0], reranker[0], index, passages, depth, backend=backend)
    texts = [passages[row] for row in range(min(TIMED, len(passages)))]
    some = retriever[0].embed(texts, level=retriever[0].structures.smallest)
    return PairTable(
        pairs, retriever[1], reranker[1],
        passage_tokens=tokens - 1,  # one [CLS] for both texts of a pair
        max_tokens=reranker[0].config.max_tokens.pair,
        search_ms=index.time_search(some.numpy(), depth),
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
    """Return how long each of a list's ``depth`` passages is for the backend, in the mean over lists near a passage.

    Passages that are found together are longer than any so many: long ones are near to more queries.
    """
    rows = np.linspace(0, len(passages) - 1, min(SAMPLE, len(passages))).astype(int)
    near = retriever.embed([passages[row] for row in rows], level=retriever.structures.smallest).numpy()
    lists = [own for own in index.search(near, depth)[1] if own]
    ids = list(dict.fromkeys(pid for own in lists for pid in own))
    found = reranker.tokenize_pairs([passages[index.row[pid]] for pid in ids], None)["attention_mask"].sum(1).tolist()
    length = dict(zip(ids, found, strict=True))
    return math.ceil(np.mean([counted_tokens(backend, [length[pid] for pid in own]) for own in lists]))
