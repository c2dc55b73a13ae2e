"""Measure every pair of retriever and reranker levels (ElasticLM, Figure 9), for ``elasticlm evaluate --matrix``."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from elasticlm.command import say
from elasticlm.errors import InputError
from elasticlm.files import new_file
from elasticlm.model.elastic_model import ElasticModel
from elasticlm.model.structure import Level, level_name
from elasticlm.retrieval import measures as metrics
from elasticlm.retrieval.data_specs import RetrievalData
from elasticlm.retrieval.passage_index import PassageIndex
from elasticlm.schedule.cascade import MeasuredPair
from elasticlm.trainer.evaluation.base import Evaluation
from elasticlm.trainer.evaluation.fusion_weights import fuse
from elasticlm.trainer.evaluation.reranking import MEASURES, draw, rerank
from elasticlm.trainer.evaluation.retrieving import first_stage
from elasticlm.trainer.training_texts import TokenizedTexts

ALONE = "alone"


def evaluate(
    retriever: ElasticModel,
    reranker: ElasticModel,
    data: RetrievalData,
    index: PassageIndex,
    *,
    retriever_levels: Sequence[Level],
    levels: Sequence[Level],
    depth: int = 20,
    max_queries: int | None = None,
    seed: int = 0,
) -> tuple[Evaluation, list[MeasuredPair]]:
    """Rerank the best ``depth`` passages of every level of the retriever by every level of the reranker.

    The reranker scores each query and passage once per level, even if several retriever levels find the passage.
    Scores are fused with the retriever's if the reranker's artifact has fusion weights.

    Returns:
        The evaluation, rows "50" (the retriever alone) and "50+10"; and the pairs, best first.
    """
    row = {pid: i for i, pid in enumerate(data.passage_ids)}
    if foreign := next((pid for pid in index.ids if pid not in row), None):
        raise InputError(f"{index.name}: {data.spec} does not have its passage {foreign!r}, to be reranked")
    kept = draw(data.query_ids, max_queries, seed)
    text = dict(zip(data.query_ids, data.queries, strict=True))
    queries = [text[qid] for qid in kept]
    lists = {
        level: first_stage(data, kept, retriever.embed(queries, level=level, show_progress=True).numpy(), index, depth)
        for level in retriever_levels
    }
    union = {qid: dict.fromkeys(pid for found in lists.values() for pid in found[qid]) for qid in kept}
    texts = TokenizedTexts.of_pairs(
        reranker, ((text[qid], data.passages[row[pid]]) for qid in kept for pid in union[qid])
    )
    say(f"{data.spec}, {data.split}: {len(kept):,} queries, {len(texts):,} pairs to rerank")

    runs: dict[tuple[Level, Level | None], metrics.Run] = {(level, None): found for level, found in lists.items()}
    for level in levels:
        scores = rerank(reranker, level, texts, union)
        for own, found in lists.items():
            reranked = {qid: {pid: scores[qid][pid] for pid in first} for qid, first in found.items()}
            runs[own, level] = fuse(reranked, found, reranker.fusion_weight(level))
    qrels = {qid: data.qrels[qid] for qid in kept}
    values = {pair: metrics.per_query(qrels, run, MEASURES) for pair, run in runs.items()}
    measure = MEASURES[0]
    pairs = [
        MeasuredPair(retriever=own, reranker=level, depth=depth, measure=measure,
                     quality=round(metrics.mean(row[measure]), metrics.DECIMALS))
        for (own, level), row in values.items()
    ]  # fmt: skip
    rows = {level_name(pair.levels): row for pair, row in zip(pairs, values.values(), strict=True)}
    result = Evaluation.of_means(
        data=data.spec, split=data.split, split_sha256=data.split_sha256, query_ids=kept, values=rows, depth=depth,
        fusion={level_name(level): reranker.fusion_weight(level) for level in levels},
    )  # fmt: skip
    return result, sorted(pairs, key=lambda pair: -pair.quality)


def table(pairs: Sequence[MeasuredPair]) -> list[dict[str, str]]:
    """Return a table with one row per retriever level: its quality alone, and with each level of the reranker."""
    retrievers, rerankers, qualities = _grid(pairs)
    return [
        {f"{pairs[0].measure}, retriever": level} | dict(zip(rerankers, map("{:.4f}".format, row), strict=True))
        for level, row in zip(retrievers, qualities, strict=True)
    ]


def draw_matrix(pairs: Sequence[MeasuredPair], file: Path) -> None:
    """Draw the pairs as a heat map, the retriever's levels down, the reranker's across."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # a second to import, which only who draws should pay
    from matplotlib.figure import Figure

    retrievers, rerankers, qualities = _grid(pairs)
    figure = Figure(figsize=(2.4 + 0.8 * len(rerankers), 1.6 + 0.55 * len(retrievers)), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(qualities, cmap="viridis", aspect="auto")
    for (row, column), quality in np.ndenumerate(qualities):
        color = "white" if quality < qualities.mean() else "black"
        axes.text(column, row, f"{quality:.3f}", ha="center", va="center", color=color)
    axes.set_xticks(range(len(rerankers)), rerankers)
    axes.set_yticks(range(len(retrievers)), retrievers)
    axes.set(xlabel=f"level of the reranker, over the top {pairs[0].depth}", ylabel="level of the retriever")
    figure.colorbar(image, label=pairs[0].measure)
    with new_file(file) as temporary:
        FigureCanvasAgg(figure).print_png(temporary)


def _grid(pairs: Sequence[MeasuredPair]) -> tuple[list[str], list[str], np.ndarray]:
    """Names of the retriever's and of the reranker's levels, largest first, and the qualities [retriever, reranker]."""
    retrievers = sorted({pair.retriever for pair in pairs}, reverse=True)
    rerankers = [None, *sorted({pair.reranker for pair in pairs if pair.reranker is not None}, reverse=True)]
    quality = {(pair.retriever, pair.reranker): pair.quality for pair in pairs}
    names = [ALONE if level is None else level_name(level) for level in rerankers]
    grid = np.array([[quality[own, level] for level in rerankers] for own in retrievers])
    return list(map(level_name, retrievers)), names, grid
