"""From a trace to the figures of a simulation."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from elasticlm.schedule import parse_policy

COLUMNS = ["arm", "t_s", "users", "queue_depth", "level", "latency_ms", "status", "query_id", "quality"]


def summarise(trace: pd.DataFrame, budgets_ms: Sequence[float]) -> dict[str, dict[str, Any]]:
    """Return the figures of every arm, in the order of the trace.

    Latencies and quality are those of answered requests (status 200); shares are of all requests sent.
    """
    return {arm: _arm(rows, budgets_ms) for arm, rows in trace.groupby("arm", sort=False)}


def effective_quality(rows: pd.DataFrame, budget_ms: float) -> float:
    """Return the quality that reached users in time, a request: sum of quality x [200 and latency <= T] / sent."""
    return float(rows["quality"].where(in_time(rows, budget_ms), 0.0).sum() / len(rows))


def in_time(rows: pd.DataFrame, budget_ms: float) -> pd.Series:
    """Return which requests were answered (200) within the budget."""
    return (rows["status"] == 200) & (rows["latency_ms"] <= budget_ms)


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
        "level_shares": {level: round(shares[level], 4) for level in sorted(shares.index, key=float, reverse=True)},
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


def arm_budget_ms(arm: str, summary: dict[str, Any]) -> float:
    """Return the budget that an arm works towards: its policy's own, or the tightest for arms without one."""
    tightest = min(float(budget) for budget in summary["arms"][arm]["budgets"])
    return getattr(parse_policy(arm), "budget_ms", tightest)
