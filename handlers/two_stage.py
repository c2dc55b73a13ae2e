"""Search, then rerank, in one answer and within one budget: a denser with its index, and a ranker behind it."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from elasticlm.fusion import fused
from elasticlm.pairs import PAIRS_FILE, MeasuredPair, read_pairs
from elasticlm.retrieval.passages import PassageTexts
from elasticlm.retrieval.pipeline import PASSAGES_FOLDER, RANKER_FOLDER, pair_table
from elasticlm.schedule import Fixed, Load, Policy
from elasticlm.structure import Level
from handlers.answers import Answer, Answerer, load_index, load_model, made_ready
from handlers.requests import Search, Service
from handlers.settings import Settings
from handlers.timing import Stages

Hits = dict[str, float]
"""Scores by passage id, best first."""


def open_archive(folder: Path, settings: Settings) -> "Answerer | TwoStageAnswerer":
    """Return what answers an unpacked archive's requests."""
    kind = TwoStageAnswerer if (folder / RANKER_FOLDER).is_dir() else Answerer
    return kind(folder, settings)


class TwoStageAnswerer:
    """Both models, the index and the passages of one archive: searches in, reranked hits out.

    Stands where an Answerer stands; its levels are pairs, of which the policy chooses one for the whole batch.

    Args:
        folder: holds `artifact/` (the denser), `ranker/`, `index/`, `passages/` and pairs.json.
        settings: the handler's settings.

    Raises InputError where the parts do not fit together.
    """

    service = Service(task="search", has_index=True)

    def __init__(self, folder: Path, settings: Settings) -> None:
        torch.set_num_threads(settings.threads)
        self.denser, denser_table = load_model(folder / "artifact", settings)
        self.ranker, ranker_table = load_model(folder / RANKER_FOLDER, settings)
        self.index = load_index(folder / "index", self.denser, settings.threads)
        self.passages = PassageTexts(folder / PASSAGES_FOLDER)
        pairs = read_pairs(folder / PAIRS_FILE)
        denser_table = made_ready(self.denser, denser_table, settings)
        ranker_table = made_ready(self.ranker, ranker_table, settings)
        denser, ranker = (self.denser, denser_table), (self.ranker, ranker_table)
        self.table = pair_table(pairs, denser, ranker, self.index, self.passages, backend=self.ranker.backend.name)
        self.adopt(settings)

    def adopt(self, settings: Settings) -> None:
        """Take the policy of these settings; raises InputError where it wants a pair that is not there."""
        policy: Policy = settings.parsed_policy()
        if isinstance(policy, Fixed):
            self.table[policy.level]
        self.policy = policy

    def answer(self, requests: Sequence[Search], load: Load, stages: Stages | None = None) -> list[Answer]:
        """Return the answers of a batch, in its order, all by one pair of levels.

        Args:
            load: what is known of the queue; rows, tokens and batch are filled in here.
            stages: takes the time of each stage.
        """
        if not requests:
            return []
        stages = stages or Stages()
        queries = [request.query for request in requests]
        inputs = self.denser.tokenize(queries)
        rows, tokens = self.denser.counted(inputs)
        stages.done("tokenize")
        levels = self.policy.choose(self.table, replace(load, rows=rows, tokens=tokens, batch=rows))
        pair = self.table[levels]
        stages.done("decide")
        vectors = self.denser.encode(inputs, pair.denser).float().cpu().numpy()
        stages.done("forward")
        scores, ids = self.index.search(vectors, pair.depth)
        lists = [dict(zip(*found, strict=False)) for found in zip(ids, scores.tolist(), strict=True)]
        stages.done("search")
        if pair.ranker is not None:
            lists = self._reranked(queries, lists, pair.ranker, stages)
        largest_ms = self.table.mean_ms(self.table.levels[0], rows, tokens) / rows
        bodies = [_body(hits, request.k, pair) for hits, request in zip(lists, requests, strict=True)]
        for body, cut in zip(bodies, self.denser.truncated(inputs), strict=True):
            body |= {"truncated": True} if cut else {}
        stages.done("convert")
        return [Answer(body, levels, largest_ms) for body in bodies]

    def _reranked(self, queries: Sequence[str], lists: Sequence[Hits], level: Level, stages: Stages) -> list[Hits]:
        """Return each query's list in the ranker's order, its scores fused with the denser's as the artifact says."""
        pairs = [(query, self.passages[self.index.row[pid]])
                 for query, found in zip(queries, lists, strict=True) for pid in found]  # fmt: skip
        if not pairs:  # an inexact index may find nothing
            return list(lists)
        firsts, seconds = map(list, zip(*pairs, strict=True))
        inputs = self.ranker.tokenize_pairs(firsts, seconds)
        stages.done("tokenize")
        scores = self.ranker.encode(inputs, level).float().cpu().numpy()
        stages.done("forward")
        weight = self.ranker.fusion_weight(level)
        ends = np.cumsum([len(found) for found in lists])[:-1]
        return [_ordered(found, own, weight) for found, own in zip(lists, np.split(scores, ends), strict=True)]


def _ordered(found: Hits, scores: np.ndarray, weight: float) -> Hits:
    scores = fused(scores, np.array(list(found.values())), weight)
    ids = list(found)
    return {ids[i]: float(scores[i]) for i in np.argsort(-scores, kind="stable")}


def _body(hits: Hits, k: int, pair: MeasuredPair) -> dict[str, Any]:
    return {
        "hits": [{"id": pid, "score": score} for pid, score in list(hits.items())[:k]],
        "levels": {"denser": pair.denser, "ranker": pair.ranker},
    }
