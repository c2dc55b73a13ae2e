"""The queue simulation compared with runs of the real server (``elasticlm validate``)."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from elasticlm.benchmarks.drive import read_rows
from elasticlm.benchmarks.queue_server import Server
from elasticlm.benchmarks.queue_simulation import ANSWERED, simulate
from elasticlm.benchmarks.queue_traffic import OpenLoop
from elasticlm.benchmarks.service_times import ServiceTimes
from elasticlm.benchmarks.summary import in_time
from elasticlm.command import print_result, print_table
from elasticlm.errors import InputError
from elasticlm.files import new_file
from elasticlm.machine import machine
from elasticlm.model.folder import LATENCY_FILE
from elasticlm.model.structure import level_name, parse_level
from elasticlm.schedule.latency import LatencyTable
from elasticlm.schedule.policies import parse_policy

WITHIN_POINTS, SHARE_POINTS = 3.0, 5.0  # what the simulator may be off: share in time, share of any level


@dataclass(frozen=True)
class Comparison:
    """One arm of one run, served and simulated; shares of all requests, by level and within the budget."""

    run: str
    arm: str
    budget_ms: float
    requests: int
    within_budget: tuple[float, float]
    level_shares: dict[str, tuple[float, float]]

    @property
    def within_points(self) -> float:
        """How far the share in time is off, in points."""
        served, simulated = self.within_budget
        return 100 * (simulated - served)

    @property
    def share_points(self) -> float:
        """How far the share of the level that is furthest off is off, in points."""
        return max((100 * (simulated - served) for served, simulated in self.level_shares.values()), key=abs)

    @property
    def holds(self) -> bool:
        return abs(self.within_points) <= WITHIN_POINTS and abs(self.share_points) <= SHARE_POINTS


def compare_with_server(options: argparse.Namespace) -> int:
    """Run what the options name."""
    table = LatencyTable.read(options.model / LATENCY_FILE)
    runs: dict[str, Any] = {}
    compared: list[Comparison] = []
    for folder in options.runs:
        summary, trace = _read(folder)
        fitted, turnaround_ms = calibrate(table, options.tokens, summary["load"]["capacity_rps"])
        server = Server(turnaround_ms=turnaround_ms, tokens=options.tokens)
        compared += compare(folder.name, trace, table, fitted, server, [float(t) for t in _budgets(summary)])
        factor = fitted.mean_ms(table.levels[0], 1, options.tokens) / table.mean_ms(table.levels[0], 1, options.tokens)
        runs[folder.name] = {
            "load": summary["load"],
            "turnaround_ms": round(turnaround_ms, 3),
            "factor": round(factor, 3),
        }
    rows = [
        {"run": one.run, "arm": one.arm, "T ms": one.budget_ms, "requests": one.requests,
         "in time %, served": round(100 * one.within_budget[0], 1),
         "simulated": round(100 * one.within_budget[1], 1), "largest difference of a level, points":
         round(one.share_points, 1), "holds": "yes" if one.holds else "no"}
        for one in compared
    ]  # fmt: skip
    result = {"machine": machine(), "runs": runs, "compared": [
        {"run": one.run, "arm": one.arm, "budget_ms": one.budget_ms, "requests": one.requests,
         "within_budget": one.within_budget, "level_shares": one.level_shares, "holds": one.holds} for one in compared
    ]}  # fmt: skip
    with new_file(options.output) as file:
        file.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print_table(rows)
    print_result({"output": str(options.output), "holds": all(one.holds for one in compared), "compared": rows})
    return 0 if all(one.holds for one in compared) else 1


def calibrate(table: LatencyTable, tokens: int, capacity_rps: dict[str, float]) -> tuple[ServiceTimes, float]:
    """Return the table scaled, and the turnaround in ms, with which the server has these capacities.

    1000 / capacity = factor x t_k + turnaround at both levels. Raises InputError unless there are two.
    """
    if len(capacity_rps) < 2:
        raise InputError("the run did not measure the capacities of its largest and smallest level; give it --load")
    (large, large_ms), *_, (small, small_ms) = ((parse_level(level), 1000 / rps) for level, rps in capacity_rps.items())
    table.check_levels([large, small])
    large_t, small_t = table.mean_ms(large, 1, tokens), table.mean_ms(small, 1, tokens)
    factor = (large_ms - small_ms) / (large_t - small_t)
    turnaround_ms = small_ms - factor * small_t
    if factor <= 0 or turnaround_ms < 0:
        raise InputError(f"the latency table is not this server's: capacities {capacity_rps} would need a factor of "
                         f"{factor:.2f} and a turnaround of {turnaround_ms:.2f} ms")  # fmt: skip
    return ServiceTimes(table.scaled(dict.fromkeys(table.levels, factor))), turnaround_ms


def compare(
    run_name: str,
    trace: pd.DataFrame,
    artifact_table: LatencyTable,
    table: ServiceTimes,
    server: Server,
    budgets_ms: Sequence[float],
) -> list[Comparison]:
    """Simulate every arm of a trace at the arrivals that it met; judge both by the arm's own budget or the first.

    The policy decides by the artifact's table (``artifact_table``), as in the server, whatever the server's speed.
    """
    compared = []
    for arm, rows in trace.groupby("arm", sort=False):
        policy = parse_policy(str(arm))
        budget_ms = policy.budget_ms or budgets_ms[0]
        times_ms = 1000 * np.sort(rows["t_s"].to_numpy())
        found = simulate(policy, table, server, OpenLoop(arrival_ms=times_ms), decided_by=artifact_table,
                         budget_ms=budget_ms)  # fmt: skip
        answered, levels = rows[rows["status"] == ANSWERED], found.level[found.status == ANSWERED]
        served = answered["level"].astype(str).value_counts(normalize=True)
        shares = {
            level_name(level): (
                round(float(served.get(level_name(level), 0.0)), 4), round(float((levels == place).mean()), 4)
            )
            for place, level in enumerate(table.levels)
        }  # fmt: skip
        within = float(in_time(rows, budget_ms).mean()), float(found.in_time(budget_ms).mean())
        compared.append(
            Comparison(run_name, str(arm), budget_ms, len(rows), (round(within[0], 4), round(within[1], 4)), shares)
        )
    return compared


def _read(folder: Path) -> tuple[dict[str, Any], pd.DataFrame]:
    try:
        summary = json.loads((folder / "summary.json").read_text("utf-8"))
        trace = read_rows(folder / "trace.csv")
    except (OSError, ValueError) as error:
        raise InputError(f"{folder}: not what `elasticlm simulate` writes ({error})") from None
    if not summary["load"]["arrivals"]:
        raise InputError(f"{folder}: a closed loop, whose arrivals depend on the answers; run it with --arrivals")
    return summary, trace


def _budgets(summary: dict[str, Any]) -> list[str]:
    return list(next(iter(summary["arms"].values()))["budgets"])
