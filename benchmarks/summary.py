"""From a trace to the figures of a simulation."""

import math
import statistics
from collections.abc import Sequence
from typing import Any

import pandas as pd
from scipy.stats import t as student_t

from elasticlm.retrieval.measures import difference
from elasticlm.schedule.policies import parse_policy

COLUMNS = ["arm", "t_s", "users", "queue_depth", "level", "latency_ms", "status", "query_id", "quality"]


def summarise(trace: pd.DataFrame, budgets_ms: Sequence[float]) -> dict[str, dict[str, Any]]:
    """Return the figures of every arm, in the order of the trace.

    Latencies and quality are those of answered requests (status 200); shares are of all requests sent.
    """
    return {arm: _arm(rows, budgets_ms) for arm, rows in trace.groupby("arm", sort=False)}


def lead(trace: pd.DataFrame, budgets_ms: Sequence[float]) -> dict[str, dict[str, Any]]:
    """Return by how much effective quality is higher than under each other arm, at each budget.

    In the lead is the first arm that works towards that budget, else the first of all. The difference is that of the
    means over the questions that both were asked, with its 95% interval and p-value (paired bootstrap over questions).
    """
    found: dict[str, dict[str, Any]] = {}
    for budget_ms in budgets_ms:
        effective = trace["quality"].where(in_time(trace, budget_ms), 0.0).groupby([trace["arm"], trace["query_id"]])
        means = effective.mean()
        first = _first(trace, budget_ms)
        over: dict[str, Any] = {}
        for arm in trace["arm"].unique():
            pairs = pd.concat([means[arm], means[first]], axis=1, join="inner")
            if arm != first and len(pairs):
                interval, p = difference(*pairs.to_numpy().T)
                over[arm] = {"difference": [round(x, 4) for x in interval], "p": round(p, 4), "questions": len(pairs)}
        found[budget_name(budget_ms)] = {"arm": first, "over": over}
    return found


def rounds(trace: pd.DataFrame, budgets_ms: Sequence[float]) -> dict[str, Any]:
    """Return each arm's figures by round, and at each budget the lead over each other arm with its 95% interval.

    The interval is Student's over the rounds' differences: all arms of a round meet the same traffic.
    """
    figures: dict[str, dict[str, dict[str, list[float]]]] = {}
    for arm, rows in trace.groupby("arm", sort=False):
        by_round = [own for _, own in rows.groupby("repeat")]
        figures[str(arm)] = {
            budget_name(budget): {
                "within_budget": [round(float(in_time(own, budget).mean()), 4) for own in by_round],
                "effective_quality": [round(effective_quality(own, budget), 4) for own in by_round],
            }
            for budget in budgets_ms
        }
    leads: dict[str, dict[str, Any]] = {}
    for budget_ms in budgets_ms:
        name, first = budget_name(budget_ms), _first(trace, budget_ms)
        ours = figures[first][name]["effective_quality"]
        leads[name] = {"arm": first} | {
            other: _interval([a - b for a, b in zip(ours, theirs[name]["effective_quality"], strict=False)])
            for other, theirs in figures.items() if other != first
        }  # fmt: skip
    return {"arms": figures, "lead": leads}


def _first(trace: pd.DataFrame, budget_ms: float) -> str:
    """Return the first arm whose policy has this budget, else the first of all."""
    arms = trace["arm"].unique()
    return next((arm for arm in arms if parse_policy(arm).budget_ms == budget_ms), arms[0])


def _interval(values: list[float]) -> list[float | None]:
    """Mean, and the ends of Student's 95% interval (None with one value)."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return [round(mean, 4), None, None]
    quantile = float(student_t.ppf(0.975, len(values) - 1))
    half = quantile * statistics.stdev(values) / math.sqrt(len(values))
    return [round(mean, 4), round(mean - half, 4), round(mean + half, 4)]


def effective_quality(rows: pd.DataFrame, budget_ms: float) -> float:
    """Return the quality that reached users in time, a request: sum of quality x [200 and latency <= T] / sent."""
    return float(rows["quality"].where(in_time(rows, budget_ms), 0.0).sum() / len(rows))


def in_time(rows: pd.DataFrame, budget_ms: float) -> pd.Series:
    """Return which requests were answered (200) within the budget."""
    return (rows["status"] == 200) & (rows["latency_ms"] <= budget_ms)


def size(level: str) -> tuple[float, float]:
    """Return what levels are ordered by: of pairs the reranker's first, the retriever alone being the smallest.

    >>> sorted(["50", "10+5", "100", "10+30", "50+5"], key=size)
    ['50', '100', '10+5', '50+5', '10+30']
    """
    retriever, _, reranker = level.partition("+")
    return float(reranker or 0), float(retriever)


def budget_name(budget_ms: float) -> str:
    """Return a budget as it is written in files: "250", "37.5"."""
    return f"{budget_ms:g}"


def _arm(rows: pd.DataFrame, budgets_ms: Sequence[float]) -> dict[str, Any]:
    answered = rows[rows["status"] == 200]
    shares = answered["level"].value_counts(normalize=True)
    percentiles = answered["latency_ms"].quantile([0.5, 0.95, 0.99]).round(2)
    return {
        "requests": len(rows),
        "failures": len(rows) - len(answered),
        **{f"p{100 * share:.0f}_ms": _number(value) for share, value in percentiles.items()},
        "quality": _number(answered["quality"].mean()),
        "level_shares": {level: round(shares[level], 4) for level in sorted(shares.index, key=size, reverse=True)},
        "budgets": {
            budget_name(budget_ms): {
                "within_budget": round(float(in_time(rows, budget_ms).mean()), 4),
                "effective_quality": round(effective_quality(rows, budget_ms), 4),
            }
            for budget_ms in budgets_ms
        },
    }


def _number(value: float) -> float | None:
    return None if pd.isna(value) else round(float(value), 4)


def behind(summary: dict[str, Any], arm: str, budget: str) -> str:
    """Return by how much an arm's effective quality is behind that of the arm in the lead, with its interval; or ""."""
    found = summary["lead"][budget]["over"].get(arm)
    return "" if found is None else "{:.3f} ({:.3f} to {:.3f})".format(*found["difference"])


def arm_budget_ms(arm: str, summary: dict[str, Any]) -> float:
    """Return the budget that an arm works towards: its policy's own, or the tightest for arms without one."""
    tightest = min(float(budget) for budget in summary["arms"][arm]["budgets"])
    return parse_policy(arm).budget_ms or tightest
