"""The policy study: every policy on the same arrivals, by the queue simulation (``elasticlm policies``)."""

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from elasticlm.benchmarks.arrivals import mean_rate_rps
from elasticlm.benchmarks.hindsight import all_service_ms, hindsight_bound
from elasticlm.benchmarks.queue_server import Server
from elasticlm.benchmarks.queue_simulation import SimulatedRequests, simulate
from elasticlm.benchmarks.queue_traffic import ClosedLoop, OpenLoop
from elasticlm.benchmarks.recommender import BATCH_SIZES, WORKERS, advice, levels_left_out, recommend
from elasticlm.benchmarks.service_times import ServiceTimes, Times
from elasticlm.benchmarks.study_inputs import (
    SERVED,
    Quality,
    build_traffic,
    kept_levels,
    parse_policies,
    read_archive,
    read_quality,
)
from elasticlm.benchmarks.study_plot import draw
from elasticlm.benchmarks.summary import COLUMNS, budget_name, summarise
from elasticlm.command import print_result, print_table, say
from elasticlm.errors import InputError
from elasticlm.files import new_folder
from elasticlm.machine import machine
from elasticlm.model.folder import LATENCY_FILE, QUALITY_FILE
from elasticlm.model.structure import Choice, level_name
from elasticlm.schedule.latency import LatencyTable
from elasticlm.schedule.policies import Policy


def run_study(options: argparse.Namespace) -> None:
    """Simulate what the options name; write trace, summary and picture; print the result."""
    workers = (options.workers,) if options.workers else WORKERS  # before the archive's own are filled in
    if options.archive:
        with tempfile.TemporaryDirectory(prefix="policies-") as folder:
            table, quality = read_archive(options, Path(folder))
    else:
        table = kept_levels(ServiceTimes(LatencyTable.read(options.model / LATENCY_FILE)), options.levels)
        quality = read_quality(options.model, options.quality, options.judged_on, options.measure, table.levels)
    server = Server(
        **{name: getattr(options, name) for name in SERVED if getattr(options, name) is not None},
        overhead_ms=options.overhead_ms, turnaround_ms=options.turnaround_ms,
        refusal_ms=options.refusal_ms, ingress_ms=options.ingress_ms, queue_size=options.queue_size,
        rows=options.rows, tokens=options.tokens,
    )  # fmt: skip
    policies = parse_policies(options.policies, options.budget, table.levels)
    own = {policy.budget_ms for policy in policies.values() if policy.budget_ms}
    budgets_ms = sorted(own | ({options.budget} if options.budget else set()))
    if not budgets_ms:
        raise InputError("no latency budget: give --budget MS, or a policy with its own t, such as slack:t=250")
    if options.recommend and not quality.known:
        source = options.archive or options.model
        raise InputError(f"--recommend needs the quality of every level: {source} has none in {QUALITY_FILE}; "
                         f"give --quality {','.join(f'{level_name(k)}=..' for k in table.levels)}")  # fmt: skip
    traffics = {spec: build_traffic(spec, options, table, server) for spec in options.arrivals}
    if len(traffics) < len(options.arrivals):
        raise InputError(f"--arrivals {' '.join(options.arrivals)}: duplicate arrivals")
    most = server.rows * max(server.batch_size, BATCH_SIZES[-1] if options.recommend else 1)
    if most > table.most_rows:
        say(f"{LATENCY_FILE} was measured up to {table.most_rows} rows: batches of more count in proportion, "
            "as if batching saved the overhead alone")  # fmt: skip

    budget_ms = options.budget or budgets_ms[0]
    trace, summary = study(policies, table, server, traffics, quality, budgets_ms, options)
    if options.recommend:
        summary["recommended"] = {
            spec: recommend(table, server, traffic, quality, budget_ms, spec, workers=workers)
            for spec, traffic in traffics.items()
        }
    with new_folder(options.output, overwrite=options.overwrite) as folder:
        trace.round({"t_s": 4, "latency_ms": 3, "quality": 6}).to_csv(folder / "trace.csv", index=False)
        (folder / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
        draw(summary, budget_ms, folder / "policies.png")
    print_table(_rows(summary))
    for spec, result in summary.get("recommended", {}).items():
        print(f"\n{spec}, T = {budget_name(budget_ms)} ms, levels {','.join(summary['levels'])}")
        print_table([{**row, "levels": levels_left_out(row["levels"], summary["levels"])} for row in result["tried"]])
        print(advice(result["best"]))
    print_result({"output": str(options.output), **summary})


def study(
    policies: dict[str, Policy],
    table: Times,
    server: Server,
    traffics: dict[str, OpenLoop | ClosedLoop],
    quality: Quality,
    budgets_ms: Sequence[float],
    options: argparse.Namespace,
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Serve all arrivals under every policy; return the trace and the summary."""
    traces, told, arms = [], {}, {}
    started = time.perf_counter()
    for spec, traffic in traffics.items():
        for name, policy in policies.items():
            arm = name if len(traffics) == 1 else f"{name} on {spec}"
            served = simulate(policy, table, server, traffic, late=options.late)
            traces.append(trace_of(arm, served, traffic, table.levels, quality))
            arms[arm] = {"policy": name, "arrivals": spec}
        told[spec] = _load(traffic, table, server)
    trace = pd.concat(traces, ignore_index=True)
    say(f"{len(trace)} requests simulated, {len(trace) / (time.perf_counter() - started):,.0f} a second")
    for spec, traffic in traffics.items():
        told[spec]["bound"] = bound(table, server, traffic, quality, budgets_ms, options.grid_ms)
    summary = {
        "measure": quality.measure,
        "machine": machine(),
        "arms": summarise(trace, budgets_ms),
        "arrivals": told,
        "server": asdict(server) | {"tokens": server.tokens or table.tokens[0]},
        "levels": [level_name(level) for level in table.levels],
        "budget_ms": options.budget or budgets_ms[0],
        "seed": options.seed,
    }
    for arm, figures in summary["arms"].items():
        figures |= arms[arm]
        if not quality.known:  # a sum over unknown values is not 0
            for judged in figures["budgets"].values():
                judged["effective_quality"] = None
    return trace, summary


def trace_of(
    arm: str, served: SimulatedRequests, traffic: OpenLoop | ClosedLoop, levels: Sequence[Choice], quality: Quality
) -> pd.DataFrame:
    """Return one row per request, as the online simulation writes them."""
    names = np.array([level_name(level) for level in levels])
    return pd.DataFrame({
        "arm": arm, "t_s": served.arrival_ms / 1000,
        "users": traffic.users(served.arrival_ms, served.answered_ms), "queue_depth": served.queue_depth,
        "level": names[served.level], "latency_ms": served.latency_ms, "status": served.status,
        "query_id": served.request.astype(str), "quality": quality.of(levels)[served.level],
    })[COLUMNS]  # fmt: skip


def bound(
    table: Times,
    server: Server,
    traffic: OpenLoop | ClosedLoop,
    quality: Quality,
    budgets_ms: Sequence[float],
    grid_ms: float,
) -> dict[str, dict[str, float | None]] | None:
    """Return what no policy can exceed, a budget; None where there is no bound: batches, workers, a closed loop."""
    if not isinstance(traffic, OpenLoop) or server.batch_size > 1 or server.workers > 1:
        return None
    service_ms = all_service_ms(table, server, traffic)

    def most(values: np.ndarray, budget_ms: float) -> float:
        holding_ms = budget_ms + server.turnaround_ms - server.overhead_ms  # answers leave before the worker is free
        return round(hindsight_bound(traffic.arrival_ms, service_ms, values.tolist(), holding_ms, grid_ms=grid_ms), 4)

    return {
        budget_name(budget_ms): {
            "within_budget": most(np.ones(len(table.levels)), budget_ms),
            "effective_quality": most(quality.of(table.levels), budget_ms) if quality.known else None,
        }
        for budget_ms in budgets_ms
    }


def _load(traffic: OpenLoop | ClosedLoop, table: Times, server: Server) -> dict[str, Any]:
    """Return the offered load relative to what the largest level can answer."""
    capacity_rps = server.capacity_rps(table, table.levels[0])
    offered_rps: float | None
    if isinstance(traffic, ClosedLoop):  # what all users would send to a server that answers at once
        offered_rps, duration_s = (
            1000 * traffic.user_count / float(np.mean(traffic.pause_ms)),
            traffic.duration_ms / 1000,
        )
    else:
        span_ms = traffic.arrival_ms[-1] - traffic.arrival_ms[0]
        offered_rps, duration_s = mean_rate_rps(traffic.arrival_ms / 1000) if span_ms else None, span_ms / 1000
    return {
        "duration_s": round(float(duration_s), 3),
        "offered_rps": offered_rps and round(float(offered_rps), 3),
        "capacity_rps": round(capacity_rps, 3),
        "load": offered_rps and round(float(offered_rps) / capacity_rps, 4),
    }


def _rows(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the result as a table for people: a row a policy and budget, the bound below."""
    rows = []
    for spec, told in summary["arrivals"].items():
        arms = [figures for figures in summary["arms"].values() if figures["arrivals"] == spec]
        bounds = [{"policy": "(bound)", "budgets": told["bound"]}] if told["bound"] else []
        for figures in [*arms, *bounds]:
            for budget, judged in figures["budgets"].items():
                effective = judged["effective_quality"]
                rows.append({
                    "arrivals": spec, "policy": figures["policy"], "T ms": budget,
                    "in time %": round(100 * judged["within_budget"], 2),
                    "effective": "unknown" if effective is None else effective,
                    **{name: figures.get(key, "") for name, key in
                       (("p50 ms", "p50_ms"), ("p95 ms", "p95_ms"), ("p99 ms", "p99_ms"), ("requests", "requests"))},
                })  # fmt: skip
    return rows
