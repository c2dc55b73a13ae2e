"""Measure how well every level reranks judged candidates or the top of a first stage, for ``elasticlm evaluate``."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import islice

import numpy as np

from elasticlm.command import say
from elasticlm.errors import InputError
from elasticlm.model.elastic_model import ElasticModel
from elasticlm.model.structure import Level, level_name
from elasticlm.retrieval import measures as metrics
from elasticlm.retrieval.bm25 import bm25_scores, bm25_top
from elasticlm.retrieval.columns import rows_of
from elasticlm.retrieval.data_specs import RetrievalData
from elasticlm.trainer.evaluation import fusion_weights as fusion
from elasticlm.trainer.evaluation.base import TEACHER, Evaluation
from elasticlm.trainer.evaluation.classification import outputs
from elasticlm.trainer.training_texts import TokenizedTexts

FIRST_STAGE = "first_stage"
MEASURES = ("RR@10", "RR@100", "nDCG@10")

Lists = dict[str, dict[str, float]]
"""``lists[query_id][passage_id]`` is the first stage's score."""


def evaluate(
    model: ElasticModel,
    teacher: ElasticModel | None,
    data: RetrievalData,
    levels: Sequence[Level],
    *,
    run: metrics.Run | None = None,
    depth: int = 20,
    max_queries: int | None = None,
    fuse: bool = False,
    seed: int = 0,
) -> tuple[Evaluation, dict[str, metrics.Run]]:
    """Rerank each query's list at every level.

    Args:
        teacher: the reranker that retention is measured against; None takes this one's largest level.
        run: a retriever's run, whose first ``depth`` passages are reranked. None: the set's judged candidates where it
            has them, else the first ``depth`` by BM25.
        depth: length of the reranked lists. No passage beyond it is found, so RR@100 needs a depth of 100.
        max_queries: maximum number of queries, sampled at random.
        fuse: fit the weight of the first stage for each level; if False, the weights in the artifact are used.

    Returns:
        The evaluation, with the facts ``above_first_stage`` (difference, 95% interval, p: paired bootstrap over
        queries) and, where there is any, ``fusion`` (each level's weight of the first stage); and the runs by name.
        Rows such as "50+first_stage" are fused.
    """
    judged = {qid: grades for qid, grades in (data.candidates or {}).items() if any(g > 0 for g in grades.values())}
    qrels, measures = (data.qrels, MEASURES) if run is not None or not judged else (judged, metrics.CANDIDATE_MEASURES)
    kept = sorted(qrels, key=data.query_ids.index) if len(qrels) < len(data.query_ids) else list(data.query_ids)
    kept = draw(kept, max_queries, seed)
    text = dict(zip(data.query_ids, data.queries, strict=True))
    lists = _lists(data, kept, text, run=run, candidates=judged if qrels is judged else None, depth=depth)
    row = rows_of(data.passage_ids, {pid for own in lists.values() for pid in own})

    def pairs() -> Iterator[tuple[str, str]]:  # read anew each time: the passages need not fit in memory
        return ((text[qid], data.passages[row[pid]]) for qid in kept for pid in lists[qid])

    count = sum(map(len, lists.values()))
    say(f"{data.spec}, {data.split}: {len(kept):,} queries, {count:,} pairs to rerank")
    runs: dict[str, metrics.Run] = {FIRST_STAGE: lists}
    texts = TokenizedTexts.of_pairs(model, pairs())
    names = [level_name(level) for level in levels]
    runs |= {name: rerank(model, level, texts, lists) for name, level in zip(names, levels, strict=True)}
    judgements = {qid: qrels[qid] for qid in kept}
    if fuse:
        weights = {name: fusion.fit(runs[name], lists, judgements, measures[0]) for name in names}
    else:
        known = model.config.fusion.by_level
        weights = {name: known[name] for name in names if name in known}
    runs |= {f"{name}+{FIRST_STAGE}": fusion.fuse(runs[name], lists, weight) for name, weight in weights.items()}
    reranked = [name for name in runs if name != FIRST_STAGE]
    largest = model.structures.largest
    if teacher is not None:
        runs[TEACHER] = rerank(teacher, teacher.structures.largest, TokenizedTexts.of_pairs(teacher, pairs()), lists)
    elif largest in levels:
        runs[TEACHER] = runs[level_name(largest)]
    else:
        runs[TEACHER] = rerank(model, largest, texts, lists)
    values = {name: metrics.per_query(judgements, ranked, measures) for name, ranked in runs.items()}
    above = {
        name: {
            kind: dict(zip(("difference", "p"), metrics.difference(values[FIRST_STAGE][kind], column, seed=seed),
                           strict=True))
            for kind, column in values[name].items()
        }
        for name in reranked
    }  # fmt: skip
    facts = {"above_first_stage": above} | ({"fusion": weights} if weights else {})
    result = Evaluation.of_means(
        data=data.spec, split=data.split, split_sha256=data.split_sha256, query_ids=kept, values=values,
        retained=names, seed=seed, **facts,
    )  # fmt: skip
    return result, runs


def rerank(
    model: ElasticModel, level: Level, texts: TokenizedTexts, lists: Mapping[str, Collection[str]]
) -> dict[str, dict[str, float]]:
    """Return each list's passages with their scores at a level; ``texts`` holds the pairs, list after list."""
    scores = iter(outputs(model, level, texts, desc="rerank").squeeze(-1).tolist())
    return {qid: {pid: next(scores) for pid in own} for qid, own in lists.items()}


def draw(query_ids: Sequence[str], count: int | None, seed: int) -> list[str]:
    """Return at most ``count`` of the queries, drawn at random, in their order; None: all."""
    if count is None or count >= len(query_ids):
        return list(query_ids)
    drawn = np.random.default_rng([seed, 6]).choice(len(query_ids), count, replace=False)
    return [query_ids[i] for i in np.sort(drawn)]


def table(result: Evaluation) -> list[dict[str, str]]:
    """One row per level for people: how far it is above the first stage, with interval and p-value."""
    rows = []
    for name, values in result.metrics.items():
        first = next(iter(values))
        above = result.facts["above_first_stage"].get(name, {}).get(first)
        cells = {kind: f"{value:.4f}" for kind, value in values.items()}
        difference = "{:+.4f} [{:+.4f}, {:+.4f}]".format(*above["difference"]) if above else "-"
        p = f"{above['p']:.3f}" if above else "-"
        rows.append({"level": name} | cells | {f"{first} above the first stage": difference, "p": p})
    return rows


def pairs_of(
    runs: Mapping[str, metrics.Run], names: Sequence[str], data: RetrievalData
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return every reranked pair's score in these runs, FloatArrays [pairs], and whether it is relevant, BoolArray."""
    grades = data.candidates or {}
    judged = {qid: grades.get(qid, {}) | own for qid, own in data.qrels.items()}
    scores = {
        name: np.array([score for found in runs[name].values() for score in found.values()], dtype=float)
        for name in names
    }
    relevant = [judged[qid].get(pid, 0) > 0 for qid, found in runs[names[0]].items() for pid in found]
    return scores, np.array(relevant)


def calibration_table(report: Mapping[str, Mapping[str, Mapping[str, float]]]) -> list[dict[str, str]]:
    """Return one row per level: calibration error, and decisions that differ by level, before and after calibration."""
    return [
        {"level": name, "ECE, raw": f"{kinds['raw']['ece']:.3f}", "calibrated": f"{kinds['calibrated']['ece']:.3f}",
         "decisions changed, raw": f"{kinds['raw']['decisions_changed']:.1%}",
         "as calibrated": f"{kinds['calibrated']['decisions_changed']:.1%}"}
        for name, kinds in report.items()
    ]  # fmt: skip


def _lists(
    data: RetrievalData,
    kept: Sequence[str],
    text: Mapping[str, str],
    *,
    run: metrics.Run | None,
    candidates: Mapping[str, Mapping[str, int]] | None,
    depth: int,
) -> Lists:
    """What is reranked for each query, with the first stage's scores."""
    row = {pid: i for i, pid in enumerate(data.passage_ids)}
    queries = [text[qid] for qid in kept]
    if candidates is not None:
        own = [list(candidates[qid]) for qid in kept]
        scores = bm25_scores(queries, data.passages, [[row[pid] for pid in pids] for pids in own])
        return {qid: dict(zip(p, s.tolist(), strict=True)) for qid, p, s in zip(kept, own, scores, strict=True)}
    if run is None:
        rows, found = bm25_top(queries, data.passages, min(depth + data.has_self_hits, len(data.passages)))
        ids = [[data.passage_ids[i] for i in some] for some in rows.tolist()]
        hits = {qid: dict(zip(p, s, strict=True)) for qid, p, s in zip(kept, ids, found.tolist(), strict=True)}
        return {qid: dict(islice(data.without_self(qid, own).items(), depth)) for qid, own in hits.items()}
    lists: Lists = {}
    for qid in kept:
        best = metrics.ranking(data.without_self(qid, run.get(qid, {})))[:depth]
        if unknown := next((pid for pid in best if pid not in row), None):
            raise InputError(f"the run ranks passage {unknown!r} for query {qid!r}, which {data.spec} does not have")
        lists[qid] = {pid: run[qid][pid] for pid in best}
    if not any(lists.values()):
        raise InputError(f"the run ranks nothing for any query of {data.spec}, split {data.split}")
    return lists
