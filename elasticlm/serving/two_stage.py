"""Answer searches with a two-stage archive: a retriever searches an index, and a reranker orders the hits.

One latency budget covers both stages.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from elasticlm.model.structure import Choice, Level
from elasticlm.model.tokenizing import Tokenized
from elasticlm.retrieval.passage_texts import PassageTexts
from elasticlm.retrieval.score_fusion import fused
from elasticlm.schedule.cascade import MeasuredPair
from elasticlm.schedule.load import Load
from elasticlm.schedule.policies import Policy, decide
from elasticlm.schedule.typical import TypicalRequest
from elasticlm.serving.bundle import Bundle
from elasticlm.serving.cascade_times import pair_table
from elasticlm.serving.engine import Answer, Answerer, Engine, late_error, load_index, load_with_latency, warmed_up
from elasticlm.serving.requests import Request, RequestError, Search, Service
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
        self.retriever, retriever_table, retriever_fallbacks = load_with_latency(bundle.artifact, settings)
        self.reranker, reranker_table, reranker_fallbacks = load_with_latency(bundle.reranker, settings)
        self.int8_fallbacks = retriever_fallbacks + reranker_fallbacks
        self.index = load_index(bundle.index, self.retriever, settings.threads)
        self._typical = TypicalRequest()
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
        self.policy, self.late = policy, settings.late

    def answer(
        self, requests: Sequence[Request], load: Load, stages: Stages | None = None
    ) -> list[Answer | RequestError]:
        """Return what becomes of each request of a batch, in order; one pair of levels computes all answers.

        Args:
            load: what is known about the queue; this method fills in rows and tokens.
            stages: records the time of each stage.
        """
        if not requests:
            return []
        searches = cast(Sequence[Search], requests)  # refuse_unserved() lets no others in
        stages = stages or Stages()
        inputs = self.retriever.tokenize([request.query for request in searches])
        rows, tokens = self.retriever.counted(inputs)
        stages.done("tokenize")
        self._typical.saw(len(searches), rows=rows, tokens=tokens)
        load = replace(load, rows=rows, tokens=tokens,
                       waiting_rows=self._typical.rows, waiting_tokens=self._typical.tokens)  # fmt: skip
        decision = decide(self.policy, self.table, load, self.late)
        stages.done("decide")
        outcomes: dict[int, Answer | RequestError] = {i: late_error(load, i) for i in decision.refused}
        kept = [i for i in range(len(searches)) if i not in decision.refused]
        if kept:
            if outcomes:
                inputs = self.retriever.tokenize([searches[i].query for i in kept])
                stages.done("tokenize")
            outcomes |= zip(kept, self._found([searches[i] for i in kept], inputs, decision.level, stages), strict=True)
        return [outcomes[i] for i in range(len(searches))]

    def _found(self, searches: Sequence[Search], inputs: Tokenized, levels: Choice, stages: Stages) -> list[Answer]:
        """Return the answers to tokenised searches, computed by a pair of levels."""
        pair = self.table[levels]
        vectors = self.retriever.encode(inputs, pair.retriever).float().cpu().numpy()
        stages.done("forward")
        scores, ids = self.index.search(vectors, pair.depth)
        lists = [dict(zip(*hits, strict=False)) for hits in zip(ids, scores.tolist(), strict=True)]
        stages.done("search")
        if pair.reranker is not None:
            lists = self._reranked([search.query for search in searches], lists, pair.reranker, stages)
        rows, tokens = self.retriever.counted(inputs)
        largest_ms, expected_ms = (self.table.mean_ms(each, rows, tokens) / rows
                                   for each in (self.table.levels[0], levels))  # fmt: skip
        bodies = [_body(hits, search.k, pair) for hits, search in zip(lists, searches, strict=True)]
        for body, cut in zip(bodies, inputs.cut, strict=True):
            body |= {"truncated": True} if cut else {}
        stages.done("convert")
        return [Answer(body, levels, largest_ms, expected_ms) for body in bodies]

    def _reranked(self, queries: Sequence[str], lists: Sequence[Hits], level: Level, stages: Stages) -> list[Hits]:
        """Return each list in the reranker's order, with scores fused with the retriever's by the artifact's weight."""
        rows = iter(self.index.ids.rows([pid for hits in lists for pid in hits]))
        pairs = [(query, self.passages[next(rows)]) for query, hits in zip(queries, lists, strict=True) for _ in hits]
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
