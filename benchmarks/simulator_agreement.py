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
from elasticlm.model.structure import level_name
from elasticlm.schedule.latency import LatencyTable
from elasticlm.schedule.policies import parse_policy

DRAWS = 5  # of the service times
LEAST_CYCLES = 10  # answers in a row that tell how fast a level was
WITHIN_POINTS, SHARE_POINTS = 3.0, 5.0  # what the simulator may be off: share in time, share of any level


@dataclass(frozen=True)
class Comparison:
    """One arm of one run, served and simulated; shares of all requests, by level and within the budget.

    ``speed`` has a factor on the latency table and a turnaround in ms for each round.
    """

    run: str
    arm: str
    budget_ms: float
    requests: int
    within_budget: tuple[float, float]
    level_shares: dict[str, tuple[float, float]]
    speed: list[tuple[float, float]]

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
        queue_sizes = summary["server"]["queue_size"]
        found = compare(folder.name, trace, table, server, queue_sizes, float(_budgets(summary)[0]))
        compared += found
        runs[folder.name] = {"load": summary["load"], "speed": {one.arm: one.speed for one in found}}
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


def calibrate(rows: pd.DataFrame, table: Times, server: Server) -> tuple[float, float]:
    """Return by what factor the server was slower than its table during a run, and its turnaround in ms.

    Where requests wait behind a batch, the next answer comes one cycle later: factor x t_k + turnaround. Both are
    fitted to the median cycle of every level. Raises InputError if fewer than two levels answered often enough.
    """
    rows = rows.assign(ended_ms=1000 * rows["t_s"] + rows["latency_ms"]).sort_values("ended_ms")
    ended_ms, others_wait = rows["ended_ms"].to_numpy(), rows["queue_depth"].fillna(0).to_numpy() > 0
    answered = rows["status"].to_numpy() == ANSWERED
    in_a_row = answered[1:] & answered[:-1] & others_wait[:-1]
    levels = rows["level"].astype(str).to_numpy()[1:]
    cycles = pd.DataFrame({"ms": np.diff(ended_ms)[in_a_row], "level": levels[in_a_row]})
    known = {level_name(level): table.mean_ms(level, server.rows, server.tokens) for level in table.levels}
    by_level = cycles.groupby("level")["ms"]
    medians = {level: float(times_ms.median()) for level, times_ms in by_level if len(times_ms) >= LEAST_CYCLES}
    if len(medians) < 2:
        raise InputError(f"fewer than two levels answered {LEAST_CYCLES} requests in a row: the run is too short or "
                         "its load too low to tell how fast the server was")  # fmt: skip
    expected_ms = np.array([known[level] for level in medians])
    cycle_ms = np.array(list(medians.values()))
    factor, turnaround_ms = np.polyfit(expected_ms, cycle_ms, 1, w=1 / cycle_ms)
    return max(float(factor), 0.01), max(float(turnaround_ms), 0.0)


def compare(
    run_name: str, trace: pd.DataFrame, table: Times, server: Server, queue_sizes: dict[str, int], budget_ms: float
) -> list[Comparison]:
    """Simulate every arm of a trace at the arrivals that it met; judge both by the arm's own budget or the given one.

    Service times are drawn DRAWS times; the comparison is with the mean.
    """
    compared = []
    for arm, rows in trace.groupby("arm", sort=False):
        policy, judged_ms = parse_policy(str(arm)), parse_policy(str(arm)).budget_ms or budget_ms
        rounds = [part for _, part in rows.groupby("repeat")] if "repeat" in rows else [rows]
        runs, speeds = [], []
        for part in rounds:
            factor, turnaround_ms = calibrate(part, table, server)
            speeds.append((round(factor, 3), round(turnaround_ms, 3)))
            times, times_ms = table.scaled(factor), 1000 * np.sort(part["t_s"].to_numpy())
            as_fast = replace(server, turnaround_ms=turnaround_ms, queue_size=queue_sizes[str(arm)])
            runs += [
                simulate(policy, times, as_fast, OpenLoop(arrival_ms=times_ms, seed=seed)) for seed in range(DRAWS)
            ]
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
        compared.append(Comparison(run_name, str(arm), judged_ms, len(rows), within, shares, speeds))
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
