"""Retrieval metrics per query by ir_measures, and how sure one is of them: the paired bootstrap over queries."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import overload

import ir_measures
import numpy as np

from elasticlm.errors import InputError
from elasticlm.retrieval.lines import numbered_lines

Run = Mapping[str, Mapping[str, float]]

RETRIEVAL_MEASURES = ("RR@10", "RR@100", "nDCG@10", "R@5", "R@20", "R@100")
CANDIDATE_MEASURES = ("RR", "AP")
DEPTH = 100  # passages a query that are retrieved and measured
BOOTSTRAP_SAMPLES = 1_000
DECIMALS = 6
INTERVAL = (2.5, 97.5)  # percentiles: 95 % in between


def make_run(
    query_ids: Sequence[str], scores: Sequence[Sequence[float]] | np.ndarray, ids: Sequence[Sequence[str]]
) -> Run:
    """Join what an index returned for each query to a run: ``run[query_id][passage_id]`` is the score."""
    return {
        qid: {pid: float(score) for pid, score in zip(found, row, strict=False)}
        for qid, row, found in zip(query_ids, scores, ids, strict=True)
    }


def ranking(scores: Mapping[str, float]) -> list[str]:
    """Passage ids, best first; ties go to the greater id, as trec_eval has it.

    >>> ranking({"a": 1.0, "b": 2.0, "c": 1.0})
    ['b', 'c', 'a']
    """
    return sorted(scores, key=lambda pid: (scores[pid], pid), reverse=True)


def per_query(
    qrels: Mapping[str, Mapping[str, int]], run: Run, measures: Sequence[str] = RETRIEVAL_MEASURES
) -> dict[str, np.ndarray]:
    """Return each measure's values [queries], in the order of ``qrels``; a query without results has 0.

    Positive means a grade above 0; nDCG uses the grades as they are. Ranks are settled by ``ranking`` before
    ir_measures sees the run, since its providers break ties in different ways.
    """
    ranks = {qid: {pid: -rank for rank, pid in enumerate(ranking(run.get(qid, {})))} for qid in qrels}
    position = {qid: i for i, qid in enumerate(qrels)}
    values = {measure: np.zeros(len(qrels)) for measure in measures}
    parsed = {ir_measures.parse_measure(measure): measure for measure in measures}
    for result in ir_measures.iter_calc(list(parsed), {q: dict(grades) for q, grades in qrels.items()}, ranks):
        values[parsed[result.measure]][position[result.query_id]] = result.value
    return values


def mean(values: np.ndarray) -> float:
    """Mean over queries; those that a measure does not apply to are NaN and left out."""
    return float(np.nanmean(values))


@overload
def rounded(values: Sequence[float] | np.ndarray) -> list[float | None]: ...
@overload
def rounded(values: None) -> None: ...
@overload
def rounded(values: Sequence[float] | np.ndarray | None) -> list[float | None] | None: ...
def rounded(values: Sequence[float] | np.ndarray | None) -> list[float | None] | None:
    """Values for a JSON file: six decimals; JSON has no NaN, so what does not apply is null."""
    if values is None:
        return None
    return [None if np.isnan(value) else round(float(value), DECIMALS) for value in values]


def retention(
    values: np.ndarray, teacher: np.ndarray, *, samples: int = BOOTSTRAP_SAMPLES, seed: int = 0
) -> list[float] | None:
    """Return [value, low, high] of mean(values) / mean(teacher), paired over queries; None where the teacher has 0.

    The interval is the 95% percentile bootstrap: queries are drawn with replacement, the same for both.
    """
    values, teacher = _paired(values, teacher)
    if not teacher.sum():
        return None
    tops, bottoms = _resampled_sums(np.stack([values, teacher]), samples, seed)
    ratios = tops[bottoms > 0] / bottoms[bottoms > 0]
    low, high = np.percentile(ratios, INTERVAL)
    return [float(values.sum() / teacher.sum()), float(low), float(high)]


def resampled_retention(
    measure: Callable[[np.ndarray], tuple[float, float]], count: int, *, samples: int = BOOTSTRAP_SAMPLES, seed: int = 0
) -> list[float] | None:
    """Return [value, low, high] of the ratio of a measure that is no mean over examples (F1, a correlation).

    Args:
        measure: gives a level's and the teacher's value over these examples (rows, IntArray).
        count: how many examples there are.

    Returns:
        None where the teacher has 0 or nothing; the interval is that of retention().
    """
    rng = np.random.default_rng(seed)
    found = [measure(rng.integers(0, count, count)) for _ in range(samples)]
    ratios = [value / teacher for value, teacher in found if teacher > 0 and np.isfinite(value)]
    value, teacher = measure(np.arange(count))
    if not teacher > 0 or not ratios:
        return None
    low, high = np.percentile(ratios, INTERVAL)
    return [float(value / teacher), float(low), float(high)]


def difference(
    first: np.ndarray, second: np.ndarray, *, samples: int = BOOTSTRAP_SAMPLES, seed: int = 0
) -> tuple[list[float], float]:
    """Return [value, low, high] of mean(second) - mean(first), paired over queries, and its two-sided p-value.

    p is twice the share of bootstrap samples on the other side of zero, counting the sample observed.
    """
    first, second = _paired(first, second)
    means = _resampled_sums((second - first)[None], samples, seed)[0] / len(first)
    low, high = np.percentile(means, INTERVAL)
    tail = min((means <= 0).sum(), (means >= 0).sum())
    return [float((second - first).mean()), float(low), float(high)], min(1.0, 2 * (int(tail) + 1) / (samples + 1))


def write_trec_run(path: Path, run: Run, tag: str) -> None:
    """Write a run as trec_eval reads it: query, Q0, passage, rank, score, tag."""
    if broken := next((name for qid in run for name in (qid, *run[qid]) if len(name.split()) != 1), None):
        raise InputError(f"TREC runs part columns by blanks: id {broken!r} cannot stand in one")
    with open(path, "w", encoding="utf-8") as file:
        for qid, scores in run.items():
            for rank, pid in enumerate(ranking(scores), 1):
                file.write(f"{qid} Q0 {pid} {rank} {scores[pid]:.9g} {tag}\n")


def read_trec_run(path: Path) -> dict[str, dict[str, float]]:
    """Read a run in TREC form, which may be compressed (.gz): ``run[query_id][passage_id]`` is the score.

    Equal passage ids are one string, since runs over training queries have tens of millions of lines. Raises InputError
    with file and line.
    """
    if not path.is_file():
        raise InputError(f"no such file {path}")
    run: dict[str, dict[str, float]] = {}
    ids: dict[str, str] = {}
    for place, _, line in numbered_lines(path):
        try:
            qid, _, pid, _, score, _ = line.split()
            run.setdefault(qid, {})[ids.setdefault(pid, pid)] = float(score)
        except ValueError:
            raise InputError(f"{place}: expected: query Q0 passage rank score tag") from None
    return run


def _paired(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both without the queries that the measure does not apply to."""
    first, second = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    applies = ~(np.isnan(first) | np.isnan(second))
    return first[applies], second[applies]


def _resampled_sums(values: np.ndarray, samples: int, seed: int) -> np.ndarray:
    """Sums [rows, samples] of values [rows, queries] over queries drawn with replacement, alike for all rows."""
    rng = np.random.default_rng(seed)
    count = values.shape[1]
    sums = np.empty((len(values), samples))
    for sample in range(samples):  # one at a time: samples x queries indices at once would be much memory
        sums[:, sample] = values[:, rng.integers(0, count, count)].sum(1)
    return sums
