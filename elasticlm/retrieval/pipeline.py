"""A denser and a ranker behind it, over one index: how long they take together."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

from elasticlm.backend import counted_tokens
from elasticlm.latency import LatencyTable
from elasticlm.model import ElasticModel
from elasticlm.pairs import MeasuredPair, PairTable

if TYPE_CHECKING:
    from elasticlm.retrieval.index import PassageIndex

RANKER_FOLDER, PASSAGES_FOLDER = "ranker", "passages"
"""Where an archive holds them, beside the denser's `artifact/` and `index/`."""
SAMPLE = 64  # searches by which it is judged how long a list's passages are
TIMED = 5  # searches by which it is judged how long one takes


class Passages(Protocol):
    """Texts of an index's passages, by row: a list, or PassageTexts."""

    def __len__(self) -> int: ...

    def __getitem__(self, row: int, /) -> str: ...


def pair_table(
    pairs: Sequence[MeasuredPair],
    denser: tuple[ElasticModel, LatencyTable],
    ranker: tuple[ElasticModel, LatencyTable],
    index: "PassageIndex",
    passages: Passages,
    *,
    backend: str,
) -> PairTable:
    """Return the service times of pairs of levels: lists as long as this index gives, the index's own time measured.

    Args:
        denser, ranker: models, and their latency tables in the setup that is served.
        backend: what runs the ranker.
    """
    depth = max(pair.depth for pair in pairs)
    tokens = tokens_of_lists(denser[0], ranker[0], index, passages, depth, backend=backend)
    texts = [passages[row] for row in range(min(TIMED, len(passages)))]
    some = denser[0].embed(texts, level=denser[0].structures.smallest)
    return PairTable(
        pairs, denser[1], ranker[1],
        passage_tokens=tokens - 1,  # one [CLS] for both texts of a pair
        max_tokens=(ranker[0].config.max_tokens or {})["pair"],
        search_ms=index.time_search(some.numpy(), depth),
    )  # fmt: skip


def tokens_of_lists(
    denser: ElasticModel,
    ranker: ElasticModel,
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
    near = denser.embed([passages[row] for row in rows], level=denser.structures.smallest).numpy()
    lists = [own for own in index.search(near, depth)[1] if own]
    ids = list(dict.fromkeys(pid for own in lists for pid in own))
    found = ranker.tokenize_pairs([passages[index.row[pid]] for pid in ids], None)["attention_mask"].sum(1).tolist()
    length = dict(zip(ids, found, strict=True))
    return math.ceil(np.mean([counted_tokens(backend, [length[pid] for pid in own]) for own in lists]))
