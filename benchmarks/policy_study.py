"""The policy simulator: what a policy makes of given arrivals, from the latency table alone, without a server.

    elasticlm policies --model out/model --arrivals trace:arrivals.csv gamma:20,4 rush:60 \\
        --policies slack:t=250,alpha=.6 queue:t=250 fixed:50 --output out/policies
    elasticlm policies --archive model_store/mini.mar --arrivals gamma:20,4 --recommend --output out/best

An archive brings its levels' times and quality, of a pipeline those of its pairs of levels, and the budget, batch size,
workers and delay that it is served with; of a model all that is an option.

Arrivals are open loops, `trace:FILE.csv`, `poisson:RATE`, `gamma:RATE,CV` (requests a second), or the paper's rush,
`rush:USERS`: users grow evenly over the first 50/120 of the duration and pause 1-3 s between answer and next request.
Of a trace the busiest window is taken: the `--requests` consecutive arrivals that took the least time (all where there
are fewer); of the others the first so many. `--load .6` then stretches or shrinks the time axis, so that the window's
mean rate is .6 of what the server would answer at the largest level with full batches, its overhead included; bursts
keep their form.

Every policy meets the same arrivals and, request by request, the same luck in service time. With one worker, batch size
1 and an open loop a bound is told as well: the best that any choice of levels could have reached, had it known all
arrivals and service times. Requests are never refused: the queue has no end and late requests are answered (late).

The result is a folder: trace.csv (a row a request; arm is the policy, with ` on ARRIVALS` where there are several),
summary.json and policies.png.
"""

import argparse
import json
import math
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from elasticlm.__main__ import run_in_checkout
from elasticlm.arguments import positive_float
from elasticlm.benchmarks.arrivals import RAMP, at_load, mean_rate_rps, open_arrivals_s
from elasticlm.benchmarks.plot import GRID, IN_TIME, INK, LATE, MUTED
from elasticlm.benchmarks.queueing import (
    SIGNALS,
    ClosedLoop,
    OpenLoop,
    PairTimes,
    Served,
    Server,
    ServiceTimes,
    Signal,
    Times,
    all_service_ms,
    hindsight_bound,
    simulate,
)
from elasticlm.benchmarks.served_archive import Archive
from elasticlm.benchmarks.summary import COLUMNS, budget_name, summarise
from elasticlm.command import parser, print_result, print_table, progress, say
from elasticlm.errors import InputError
from elasticlm.files import new_folder, refuse_existing
from elasticlm.machine import machine
from elasticlm.model.folder import LATENCY_FILE, QUALITY_FILE
from elasticlm.model.structure import Choice, level_name, parse_choice
from elasticlm.schedule.cascade import PAIRS_FILE, PairTable
from elasticlm.schedule.latency import LatencyTable
from elasticlm.schedule.policies import Policy, Slack, parse_policy

TimesT = TypeVar("TimesT", ServiceTimes, PairTimes)

ALPHAS = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
BATCH_SIZES = (1, 2, 4, 8)
SERVED = ("batch_size", "workers", "max_batch_delay_ms")  # options that an archive has values of its own for
ENOUGH = 0.99  # share within T that a recommendation should reach
WORTH = 0.001  # what a level's absence must gain, in effective quality (or share in time), before it is left out


@dataclass(frozen=True)
class Quality:
    """What an answer of each level is worth: NaN for all where nobody measured it."""

    measure: str
    values: dict[Choice, float]

    @property
    def known(self) -> bool:
        return not any(map(math.isnan, self.values.values()))

    def of(self, levels: Sequence[Choice]) -> np.ndarray:
        return np.array([self.values[level] for level in levels])


def main(argv: list[str] | None = None) -> None:
    options = _options().parse_args(argv)
    refuse_existing(options.output, overwrite=options.overwrite)
    if options.archive:
        with tempfile.TemporaryDirectory(prefix="policies-") as folder:
            table, quality = read_archive(options, Path(folder))
    else:
        table = _kept(ServiceTimes(LatencyTable.read(options.model / LATENCY_FILE)), options.levels)
        quality = read_quality(options.model, options.quality, options.judged_on, options.measure, table.levels)
    server = Server(
        **{name: getattr(options, name) for name in SERVED if getattr(options, name) is not None},
        overhead_ms=options.overhead_ms, rows=options.rows, tokens=options.tokens,
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
            spec: recommend(table, server, traffic, quality, budget_ms, spec, SIGNALS[options.signal])
            for spec, traffic in traffics.items()
        }
    with new_folder(options.output, overwrite=options.overwrite) as folder:
        trace.round({"t_s": 4, "latency_ms": 3, "quality": 6}).to_csv(folder / "trace.csv", index=False)
        (folder / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
        draw(summary, budget_ms, folder / "policies.png")
    print_table(_rows(summary))
    for spec, result in summary.get("recommended", {}).items():
        print(f"\n{spec}, T = {budget_name(budget_ms)} ms, levels {','.join(summary['levels'])}")
        print_table([{**row, "levels": _said(row["levels"], summary["levels"])} for row in result["tried"]])
        print(_advice(result["best"]))
    print_result({"output": str(options.output), **summary})


# -- What is read ------------------------------------------------------------------------------------------------------


def read_archive(options: argparse.Namespace, folder: Path) -> tuple[Times, Quality]:
    """Unpack the archive into the folder; return its service times and quality, and fill in what it is served with."""
    archive = Archive.unpack(options.archive, folder)
    for name in SERVED:
        if getattr(options, name) is None:
            setattr(options, name, getattr(archive, name))
    options.budget = options.budget or archive.handler.get("latency_budget_ms")
    if archive.is_pipeline and (options.judged_on or options.measure):
        raise InputError(f"--judged-on, --measure: the quality of a pipeline is that of its {PAIRS_FILE}")
    if archive.is_pipeline:
        say("loading both models and the index, for the length of lists and the time of a search")
    table = archive.read_times()
    if isinstance(table, PairTable):
        pairs = _kept(PairTimes(table), options.levels)
        if options.quality is None:
            measures = {pair.measure for pair in pairs.pairs.values()}
            values: dict[Choice, float] = {level: pair.quality for level, pair in pairs.pairs.items()}
            return pairs, Quality(f"{measures.pop()} of {PAIRS_FILE}", values)
        return pairs, read_quality(folder, options.quality, None, None, pairs.levels)
    times = _kept(ServiceTimes(table), options.levels)
    return times, read_quality(archive.artifact, options.quality, options.judged_on, options.measure, times.levels)


def _kept(table: TimesT, levels: Sequence[Choice] | None) -> TimesT:
    if levels is None:
        return table
    table.check_levels(levels)
    return table.keeping(levels)


def parse_policies(texts: Sequence[str] | None, budget_ms: float | None, levels: Sequence[Choice]) -> dict[str, Policy]:
    """Return the policies by name; raises InputError for a duplicate or one that names a level that is not there."""
    texts = texts or ["slack", "queue", f"fixed:{level_name(levels[0])}", f"fixed:{level_name(levels[-1])}"]
    policies = {}
    for policy in (parse_policy(text, default_budget_ms=budget_ms) for text in texts):
        policy.check(levels)
        if str(policy) in policies:
            raise InputError(f"--policies {' '.join(texts)}: duplicate policy {policy}")
        policies[str(policy)] = policy
    return policies


def read_quality(
    model: Path, given: dict[Choice, float] | None, judged_on: str | None, measure: str | None, levels: Sequence[Choice]
) -> Quality:
    """Return each level's quality: as given, else from quality.json, else NaN (with a line that says so)."""
    file = model / QUALITY_FILE
    if given is not None:
        if missing := [level_name(level) for level in levels if level not in given]:
            raise InputError(f"--quality: nothing for level {', '.join(missing)}")
        return Quality("quality as given", given)
    if not file.is_file():
        say(f"{file}: no such file, so that quality is unknown; give --quality LEVEL=VALUE,.. to have it judged")
        return Quality("quality unknown", dict.fromkeys(levels, math.nan))
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        judged_on = judged_on or next(iter(found))
        if judged_on not in found:
            raise InputError(f"--judged-on {judged_on}: {file} holds {', '.join(found)}")
        metrics = found[judged_on]["metrics"]
        measure = measure or next(iter(metrics[level_name(levels[0])]))
        if measure not in metrics[level_name(levels[0])]:
            raise InputError(f"--measure {measure}: {file} holds {', '.join(metrics[level_name(levels[0])])}")
        return Quality(
            f"{measure} on {judged_on}", {level: float(metrics[level_name(level)][measure]) for level in levels}
        )
    except InputError:
        raise
    except KeyError as error:
        raise InputError(f"{file}: nothing for {error} under {judged_on}; expected every level of the table") from None
    except (ValueError, TypeError, AttributeError, IndexError, StopIteration):
        raise InputError(f"{file}: not what `elasticlm evaluate --save` writes") from None


def build_traffic(spec: str, options: argparse.Namespace, table: Times, server: Server) -> OpenLoop | ClosedLoop:
    """Return the traffic of a spec; raises InputError."""
    kind, _, argument = spec.partition(":")
    if kind == "rush":
        if not argument.isdecimal() or not int(argument):
            raise InputError(f"arrivals {spec!r}: expected rush:USERS, a whole number above 0")
        if options.load:
            raise InputError(f"--load goes with open loops alone; the load of {spec} is its number of users")
        duration_ms = 1000 * options.duration
        return ClosedLoop(
            user_count=int(argument), duration_ms=duration_ms, ramp_ms=RAMP * duration_ms, seed=options.seed
        )
    try:
        times_s = open_arrivals_s(spec, options.requests, options.seed)
    except InputError as error:
        raise InputError(f"{error}; or rush:USERS") from None
    if options.load:
        times_s = at_load(times_s, options.load * server.capacity_rps(table, table.levels[0]), spec)
    arrival_ms = 1000 * times_s
    return OpenLoop(arrival_ms=arrival_ms, seed=options.seed)


# -- The study ---------------------------------------------------------------------------------------------------------


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
            served = simulate(policy, table, server, traffic, SIGNALS[options.signal])
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
        "server": asdict(server) | {"tokens": server.tokens or table.tokens[0], "signal": options.signal},
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
    arm: str, served: Served, traffic: OpenLoop | ClosedLoop, levels: Sequence[Choice], quality: Quality
) -> pd.DataFrame:
    """Return a row a request, as the online simulation writes them."""
    names = np.array([level_name(level) for level in levels])
    return pd.DataFrame({
        "arm": arm, "t_s": served.arrival_ms / 1000,
        "users": traffic.users(served.arrival_ms, served.answered_ms), "queue_depth": served.queue_depth,
        "level": names[served.level], "latency_ms": served.latency_ms, "status": 200,
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

    def most(values: Sequence[float], budget_ms: float) -> float:
        return round(hindsight_bound(traffic.arrival_ms, service_ms, values, budget_ms, grid_ms=grid_ms), 4)

    return {
        budget_name(budget_ms): {
            "within_budget": most(np.ones(len(table.levels)), budget_ms),
            "effective_quality": most(quality.of(table.levels), budget_ms) if quality.known else None,
        }
        for budget_ms in budgets_ms
    }


def _load(traffic: OpenLoop | ClosedLoop, table: Times, server: Server) -> dict[str, Any]:
    """Return how much is asked, beside what the largest level could answer."""
    capacity_rps = server.capacity_rps(table, table.levels[0])
    if isinstance(traffic, ClosedLoop):  # what all users would send to a server that answers at once
        offered_rps, duration_s = 1000 * traffic.user_count / np.mean(traffic.pause_ms), traffic.duration_ms / 1000
    else:
        span_ms = traffic.arrival_ms[-1] - traffic.arrival_ms[0]
        offered_rps, duration_s = mean_rate_rps(traffic.arrival_ms / 1000) if span_ms else None, span_ms / 1000
    return {
        "duration_s": round(float(duration_s), 3),
        "offered_rps": offered_rps and round(float(offered_rps), 3),
        "capacity_rps": round(capacity_rps, 3),
        "load": offered_rps and round(float(offered_rps) / capacity_rps, 4),
    }


# -- The recommendation ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trial:
    """One setting and what came of it."""

    alpha: float
    batch_size: int
    levels: tuple[Choice, ...]
    within_budget: float
    effective_quality: float

    @property
    def rank(self) -> tuple[bool, float, float]:
        """Enough in time and then effective quality; else by the share in time."""
        enough = self.within_budget >= ENOUGH
        return (enough, *((self.effective_quality, 0.0) if enough else (self.within_budget, self.effective_quality)))

    def row(self) -> dict[str, Any]:
        return {"alpha": self.alpha, "batch size": self.batch_size, "levels": ",".join(map(level_name, self.levels)),
                "in time %": round(100 * self.within_budget, 2), "effective": self.effective_quality}  # fmt: skip


def recommend(
    table: Times,
    server: Server,
    traffic: OpenLoop | ClosedLoop,
    quality: Quality,
    budget_ms: float,
    spec: str,
    signal: Signal,
) -> dict[str, Any]:
    """Return the settings of `slack` that serve the traffic best, and all that were tried.

    Best is the highest effective quality among those with ENOUGH within T, else the highest share within T. First all
    alphas and batch sizes with all levels; then, at the best, levels are left out one by one, as long as that gains.
    """

    def attempt(alpha: float, batch_size: int, levels: tuple[Choice, ...]) -> Trial:
        kept = table if levels == table.levels else table.keeping(levels)
        served = simulate(Slack(budget_ms, alpha), kept, replace(server, batch_size=batch_size), traffic, signal)
        in_time = served.in_time(budget_ms)
        gained = quality.of(levels)[served.level] * in_time
        tried.append(Trial(alpha, batch_size, levels, round(float(in_time.mean()), 4), round(float(gained.mean()), 4)))
        bar.update()
        return tried[-1]

    tried: list[Trial] = []
    with progress(desc=f"settings for {spec}", unit=" tried") as bar:
        best = max((attempt(alpha, size, table.levels) for size in BATCH_SIZES for alpha in ALPHAS), key=_rank)
        while len(best.levels) > 1:
            without = [tuple(k for k in best.levels if k != level) for level in best.levels]
            fewer = max((attempt(best.alpha, best.batch_size, levels) for levels in without), key=_rank)
            if not (fewer.rank[0], fewer.rank[1] - WORTH) > best.rank[:2]:
                break
            best = fewer
    return {"best": best.row(), "enough_in_time": best.rank[0], "tried": [trial.row() for trial in tried]}


def _rank(trial: Trial) -> tuple[bool, float, float]:
    return trial.rank


def _said(levels: str, known: Sequence[str]) -> str:
    """Return a row's levels as people see them: of many, those that are left out."""
    absent = [level for level in known if level not in levels.split(",")]
    return f"all but {','.join(absent)}" if absent else "all"


def _advice(best: dict[str, Any]) -> str:
    return (f"best: alpha {best['alpha']:g}, batch size {best['batch size']}, levels {best['levels']}: "
            f"{best['in time %']:g} % in time, effective {best['effective']:.4f}"
            + ("" if best["in time %"] >= 100 * ENOUGH else f" (nothing reached {100 * ENOUGH:g} %)"))  # fmt: skip


# -- What is shown -----------------------------------------------------------------------------------------------------


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


def draw(summary: dict[str, Any], budget_ms: float, file: Path) -> None:
    """Write the picture: a column an arrivals spec; share within T and effective quality, a bar a policy."""
    specs, budget = summary["arrivals"], budget_name(budget_ms)
    policies = list(dict.fromkeys(figures["policy"] for figures in summary["arms"].values()))
    width = 2.2 + 2.6 * len(specs) + 0.45 * len(specs) * max(0, len(policies) - 3)
    figure = Figure(figsize=(width, 6.4), dpi=144, facecolor="white", layout="constrained")
    grid = figure.subplots(2, len(specs), sharex=True, sharey="row", squeeze=False)
    bounds: list[Line2D] = []
    for column, (spec, told) in enumerate(specs.items()):
        arms = [figures for figures in summary["arms"].values() if figures["arrivals"] == spec]
        for axes, key, factor in ((grid[0, column], "within_budget", 100), (grid[1, column], "effective_quality", 1)):
            values = [figures["budgets"][budget][key] for figures in arms]
            heights = [factor * (value or 0.0) for value in values]
            labels = ["?" if value is None else f"{factor * value:.3g}" for value in values]
            bars = axes.bar(range(len(arms)), heights, color=IN_TIME, width=0.7)
            axes.bar_label(bars, labels, fontsize=8, color=INK, padding=2,
                           bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5})  # fmt: skip
            if told["bound"] and told["bound"][budget][key] is not None:
                bounds.append(
                    axes.axhline(factor * told["bound"][budget][key], color=LATE, lw=1.2, ls="--", zorder=1.5)
                )
            axes.set_xticks(range(len(arms)), [figures["policy"] for figures in arms], rotation=40, ha="right",
                            rotation_mode="anchor")  # fmt: skip
            axes.tick_params(colors=MUTED, labelsize=8)
            axes.grid(axis="y", color=GRID, lw=0.6)
            axes.set_axisbelow(True)
            axes.spines[["top", "right"]].set_visible(False)
            axes.margins(y=0.15)
        load = "" if told["load"] is None else f"\nload {told['load']:.2f} of level {summary['levels'][0]}"
        name = spec if len(spec) <= 36 else f"{spec[:6]}...{spec[-27:]}"
        grid[0, column].set_title(name + load, fontsize=10, color=INK)
    grid[0, 0].set_ylabel(f"within {budget} ms, %", color=INK)
    grid[1, 0].set_ylabel(f"effective quality\n({summary['measure']})", color=INK)
    if bounds:
        figure.legend(bounds[:1], ["the best with hindsight"], loc="outside lower right", frameon=False, fontsize=8)
    figure.savefig(file, metadata={"Software": "elasticlm"})


# -- Options -----------------------------------------------------------------------------------------------------------


def _options() -> argparse.ArgumentParser:
    options = parser("elasticlm policies", "Simulate policies on arrivals from the latency table alone.")
    served = options.add_mutually_exclusive_group(required=True)
    served.add_argument("--model", type=Path, metavar="DIR",
                        help="artifact folder: its latency.csv, and its quality.json where it has one")  # fmt: skip
    served.add_argument("--archive", type=Path, metavar="FILE.mar", help="the same from an archive, with its budget, "
                        "batch size and workers; of a pipeline its pairs of levels")  # fmt: skip
    options.add_argument("--arrivals", nargs="+", required=True, metavar="SPEC", help="trace:FILE.csv, poisson:RATE, "
                         "gamma:RATE,CV (RATE in requests a second) or rush:USERS (closed loop)")  # fmt: skip
    options.add_argument("--policies", nargs="+", metavar="POLICY", help="slack:t=MS,alpha=SHARE, queue:t=MS, "
                         "fixed:LEVEL; without t: --budget "
                         "(default: slack queue fixed:LARGEST fixed:SMALLEST)")  # fmt: skip
    options.add_argument("--budget", type=positive_float, metavar="MS", help="latency budget T in ms: of policies without "
                         "t, of the picture and of --recommend; every policy is judged by it and by every t "
                         "(default: the archive's, else the smallest t)")  # fmt: skip
    options.add_argument("--load", type=positive_float, metavar="SHARE", help="scale open loops' time so that the mean "
                         "load is this share of the largest level's capacity (default: as they are)")  # fmt: skip
    options.add_argument("--requests", type=_count, default=3000, help="requests of an open loop; of a trace the "
                         "busiest window of so many")  # fmt: skip
    options.add_argument("--duration", type=positive_float, default=120.0, metavar="S", help="seconds of a rush")
    options.add_argument("--batch-size", type=_count, help="requests in a batch at most, B (default: the archive's, "
                         "else 1)")  # fmt: skip
    options.add_argument("--workers", type=_count, help="workers that share the queue, W (default: the archive's, "
                         "else 1)")  # fmt: skip
    options.add_argument("--max-batch-delay-ms", type=positive_float, metavar="MS", help="how long a batch with room waits "
                         "for more, in ms (default: the archive's, else 1)")  # fmt: skip
    options.add_argument("--overhead-ms", type=_not_negative, default=2.0, metavar="MS",
                         help="the server's own time in ms; holds the worker once a batch")  # fmt: skip
    options.add_argument("--rows", type=_count, default=1, help="sequences of a request (a rerank of 8 passages is 8)")
    options.add_argument("--tokens", type=_count, help="padded length of a request in tokens (default: the shortest of "
                         "the table)")  # fmt: skip
    options.add_argument("--levels", type=_levels, metavar="K,..", help="levels to serve, of a pipeline pairs such as "
                         "100+50,50+10 (default: all of the table)")  # fmt: skip
    options.add_argument("--quality", type=_quality, metavar="K=Q,..", help="quality of every level, such as "
                         "100=.61,50=.6 (default: from quality.json)")  # fmt: skip
    options.add_argument("--judged-on", metavar="SPEC#SPLIT", help="whose figures of quality.json (default: its first)")
    options.add_argument("--measure", metavar="NAME", help="which measure of quality.json (default: its first)")
    options.add_argument("--signal", choices=sorted(SIGNALS), default="exact", help="what policies know of the queue")
    options.add_argument("--grid-ms", type=positive_float, default=1.0, metavar="MS", help="grid of the bound with "
                         "hindsight in ms; a finer one makes it tighter and slower")  # fmt: skip
    options.add_argument("--recommend", action="store_true", help="recommend alpha, batch size and levels of slack")
    options.add_argument("--seed", type=int, default=0, help="of arrivals, pauses and service times")
    options.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder for trace, summary, picture")
    options.add_argument("--overwrite", action="store_true", help="replace the output folder")
    return options


def _not_negative(text: str) -> float:
    if not 0 <= float(text) < math.inf:
        raise argparse.ArgumentTypeError(f"{text}: expected a number, 0 or more")
    return float(text)


def _count(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: expected a whole number above 0")
    return int(text)


def _levels(text: str) -> tuple[Choice, ...]:
    try:
        levels = tuple(parse_choice(part.strip()) for part in text.split(","))
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if len(set(levels)) < len(levels):
        raise argparse.ArgumentTypeError(f"levels {text!r}: duplicate level")
    return levels


def _quality(text: str) -> dict[Choice, float]:
    try:
        return {parse_choice(level): _not_negative(value) for level, value in
                (part.split("=") for part in text.split(","))}  # fmt: skip
    except (ValueError, argparse.ArgumentTypeError):
        raise argparse.ArgumentTypeError(
            f"{text}: expected LEVEL=VALUE,.. with values of 0 or more, such as 100=.61,50=.6"
        ) from None


if __name__ == "__main__":
    run_in_checkout("policies")
