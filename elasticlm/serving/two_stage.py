"""Answer searches with a two-stage archive: a retriever searches an index, and a reranker orders the hits.

One latency budget covers both stages.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from elasticlm.model.structure import Level
from elasticlm.retrieval.passage_texts import PassageTexts
from elasticlm.retrieval.score_fusion import fused
from elasticlm.schedule.cascade import MeasuredPair
from elasticlm.schedule.load import Load
from elasticlm.schedule.policies import Policy
from elasticlm.serving.bundle import Bundle
from elasticlm.serving.cascade_times import pair_table
from elasticlm.serving.engine import Answer, Answerer, Engine, load_index, load_with_latency, warmed_up
from elasticlm.serving.requests import Request, Search, Service
from elasticlm.serving.settings import Settings
from elasticlm.serving.stages import Stages

Hits = dict[str, float]
"""Scores by passage id, best first."""


def open_archive(folder: Path, settings: Settings) -> Engine:
    """Return the engine for an unpacked archive."""
    return TwoStageAnswerer(folder, settings) if Bundle(folder).is_two_stage else Answerer(folder, settings)


class TwoStageAnswerer:
    """Answers searches with both models, the index and the passages of a two-stage archive.

    It has the interface of Answerer. Its levels are pairs, and the policy chooses one pair for the whole batch.

    Args:
        folder: an unpacked two-stage archive, see elasticlm.serving.bundle.
        settings: the handler's settings.

    Raises InputError if the parts do not fit together.
    """

    service = Service(task="search", has_index=True)
    table_stages = frozenset({"tokenize", "forward", "search", "convert"})

    def __init__(self, folder: Path, settings: Settings) -> None:
        torch.set_num_threads(settings.threads)
        bundle = Bundle(folder)
        self.retriever, retriever_table = load_with_latency(bundle.artifact, settings)
        self.reranker, reranker_table = load_with_latency(bundle.reranker, settings)
        self.index = load_index(bundle.index, self.retriever, settings.threads)
        self.passages = PassageTexts(bundle.passages)
        pairs = bundle.read_pairs()
        retriever_table = warmed_up(self.retriever, retriever_table, settings)
        reranker_table = warmed_up(self.reranker, reranker_table, settings)
        retriever, reranker = (self.retriever, retriever_table), (self.reranker, reranker_table)
        self.table = pair_table(
            pairs, retriever, reranker, self.index, self.passages, backend=self.reranker.backend.name
        )
        self.adopt(settings)

    @property
    def row_ms(self) -> float:
        """Time of one search with the best pair of levels, for a short query."""
        return self.table.mean_ms(self.table.levels[0])

    def adopt(self, settings: Settings) -> None:
        """Switch to the policy of these settings. Raises InputError if the policy needs a pair that does not exist."""
        policy: Policy = settings.parsed_policy()
        policy.check(list(self.table.pairs))
        self.policy = policy

    def answer(self, requests: Sequence[Request], load: Load, stages: Stages | None = None) -> list[Answer]:
        """Return the answers to a batch, in the order of the requests, all computed by one pair of levels.

        Args:
            load: what is known about the queue; this method fills in rows, tokens and batch.
            stages: records the time of each stage.
        """
        if not requests:
            return []
        searches = cast(Sequence[Search], requests)  # refuse_unserved() lets no others in
        stages = stages or Stages()
        queries = [request.query for request in searches]
        inputs = self.retriever.tokenize(queries)
        rows, tokens = self.retriever.counted(inputs)
        stages.done("tokenize")
        levels = self.policy.choose(self.table, replace(load, rows=rows, tokens=tokens, batch=rows))
        pair = self.table[levels]
        stages.done("decide")
        vectors = self.retriever.encode(inputs, pair.retriever).float().cpu().numpy()
        stages.done("forward")
        scores, ids = self.index.search(vectors, pair.depth)
        lists = [dict(zip(*hits, strict=False)) for hits in zip(ids, scores.tolist(), strict=True)]
        stages.done("search")
        if pair.reranker is not None:
            lists = self._reranked(queries, lists, pair.reranker, stages)
        largest_ms = self.table.mean_ms(self.table.levels[0], rows, tokens) / rows
        bodies = [_body(hits, request.k, pair) for hits, request in zip(lists, searches, strict=True)]
        for body, cut in zip(bodies, self.retriever.truncated(inputs), strict=True):
            body |= {"truncated": True} if cut else {}
        stages.done("convert")
        return [Answer(body, levels, largest_ms) for body in bodies]

    def _reranked(self, queries: Sequence[str], lists: Sequence[Hits], level: Level, stages: Stages) -> list[Hits]:
        """Return each list in the reranker's order, with scores fused with the retriever's by the artifact's weight."""
        pairs = [(query, self.passages[self.index.row[pid]])
                 for query, hits in zip(queries, lists, strict=True) for pid in hits]  # fmt: skip
        if not pairs:  # an approximate index may find nothing
            return list(lists)
        firsts, seconds = map(list, zip(*pairs, strict=True))
        inputs = self.reranker.tokenize_pairs(firsts, seconds)
        stages.done("tokenize")
        scores = self.reranker.encode(inputs, level).float().cpu().numpy()
        stages.done("forward")
        weight = self.reranker.fusion_weight(level)
        ends = np.cumsum([len(hits) for hits in lists])[:-1]
        return [_ordered(*both, weight) for both in zip(lists, np.split(scores, ends), strict=True)]


def _ordered(hits: Hits, scores: np.ndarray, weight: float) -> Hits:
    scores = fused(scores, np.array(list(hits.values())), weight)
    ids = list(hits)
    return {ids[i]: float(scores[i]) for i in np.argsort(-scores, kind="stable")}


def _body(hits: Hits, k: int, pair: MeasuredPair) -> dict[str, Any]:
    return {
        "hits": [{"id": pid, "score": score} for pid, score in list(hits.items())[:k]],
        "levels": {"retriever": pair.retriever, "reranker": pair.reranker},
    }
