"""The queue simulation compared with runs of the real server (``elasticlm validate``)."""

import argparse
import json
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from elasticlm.benchmarks.drive import read_rows
from elasticlm.benchmarks.queue_server import Server
from elasticlm.benchmarks.queue_simulation import ANSWERED, simulate
from elasticlm.benchmarks.queue_traffic import OpenLoop
from elasticlm.benchmarks.served_archive import Archive
from elasticlm.benchmarks.service_times import ServiceTimes, Times, times_of
from elasticlm.benchmarks.summary import in_time
from elasticlm.benchmarks.workload import RELATED_TOKENS, RERANK
from elasticlm.command import print_result, print_table
from elasticlm.errors import InputError
from elasticlm.files import new_file
from elasticlm.machine import machine
from elasticlm.model.folder import LATENCY_FILE
from elasticlm.model.structure import level_name, parse_choice
from elasticlm.schedule.latency import LatencyTable
from elasticlm.schedule.policies import parse_policy

DRAWS = 5
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
    if options.archive:
        with tempfile.TemporaryDirectory(prefix="validate-") as folder:
            table = times_of(Archive.unpack(options.archive, Path(folder) / "archive").read_times())
    else:
        table = ServiceTimes(LatencyTable.read(options.model / LATENCY_FILE))
    runs: dict[str, Any] = {}
    compared: list[Comparison] = []
    for folder in options.runs:
        summary, trace = _read(folder)
        server = served_by(summary)
        fitted, server = calibrate(table, server, summary["load"]["capacity_rps"])
        queue_sizes = summary["server"]["queue_size"]
        compared += compare(folder.name, trace, table, fitted, server, queue_sizes, float(_budgets(summary)[0]))
        largest, shape = table.levels[0], (server.rows, server.tokens)
        runs[folder.name] = {
            "load": summary["load"],
            "turnaround_ms": round(server.turnaround_ms, 3),
            "factor": round(fitted.mean_ms(largest, *shape) / table.mean_ms(largest, *shape), 3),
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


def served_by(summary: dict[str, Any]) -> Server:
    """Return the server of a run, as far as it is known without a measurement."""
    served = summary["server"]
    _, _, passages = summary["workload"]["name"].partition(RERANK)
    return Server(
        batch_size=served["batch_size"], workers=served["workers"], max_batch_delay_ms=served["max_batch_delay_ms"],
        overhead_ms=served["overhead_ms"], tokens=served["tokens"] or RELATED_TOKENS, rows=int(passages or 1),
        ingress_ms=summary["load"]["ingress_ms"],
    )  # fmt: skip


def calibrate(table: Times, server: Server, capacity_rps: dict[str, float]) -> tuple[Times, Server]:
    """Return the table scaled, and the server with the turnaround, with which it has these capacities.

    1000 W B / capacity = factor x t_k(full batch) + turnaround at both levels. Raises InputError unless there are two.
    """
    if len(capacity_rps) < 2:
        raise InputError("the run did not measure the capacities of its largest and smallest level; give it --load")
    requests = server.workers * server.batch_size
    (large, large_ms), *_, (small, small_ms) = (
        (parse_choice(level), 1000 * requests / rps) for level, rps in capacity_rps.items()
    )
    table.check_levels([large, small])
    large_t, small_t = (table.mean_ms(level, server.rows * server.batch_size, server.tokens)
                        for level in (large, small))  # fmt: skip
    factor = (large_ms - small_ms) / (large_t - small_t)
    turnaround_ms = small_ms - factor * small_t
    if factor <= 0 or turnaround_ms < 0:
        raise InputError(f"the latency table is not this server's: capacities {capacity_rps} would need a factor of "
                         f"{factor:.2f} and a turnaround of {turnaround_ms:.2f} ms")  # fmt: skip
    return table.scaled(factor), replace(server, turnaround_ms=turnaround_ms)


def compare(
    run_name: str,
    trace: pd.DataFrame,
    own_table: Times,
    table: Times,
    server: Server,
    queue_sizes: dict[str, int],
    budget_ms: float,
) -> list[Comparison]:
    """Simulate every arm of a trace at the arrivals that it met; judge both by the arm's own budget or the given one.

    The policy decides by the artifact's table (``own_table``), as in the server, whatever the server's speed. Service
    times are drawn DRAWS times; the comparison is with the mean.
    """
    compared = []
    for arm, rows in trace.groupby("arm", sort=False):
        policy, arm_server = parse_policy(str(arm)), replace(server, queue_size=queue_sizes[str(arm)])
        judged_ms = policy.budget_ms or budget_ms
        rounds = [part for _, part in rows.groupby("repeat")] if "repeat" in rows else [rows]
        arrivals_ms = [1000 * np.sort(part["t_s"].to_numpy()) for part in rounds]
        runs = [simulate(policy, table, arm_server, OpenLoop(arrival_ms=times_ms, seed=seed), decided_by=own_table)
                for times_ms in arrivals_ms for seed in range(DRAWS)]  # fmt: skip
        levels = np.concatenate([found.level[found.status == ANSWERED] for found in runs])
        served = rows[rows["status"] == ANSWERED]["level"].astype(str).value_counts(normalize=True)
        shares = {
            level_name(level): (
                round(float(served.get(level_name(level), 0.0)), 4), round(float((levels == place).mean()), 4)
            )
            for place, level in enumerate(table.levels)
        }  # fmt: skip
        within = (
            round(float(in_time(rows, judged_ms).mean()), 4),
            round(float(np.mean([found.in_time(judged_ms).mean() for found in runs])), 4),
        )
        compared.append(Comparison(run_name, str(arm), judged_ms, len(rows), within, shares))
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
