"""The online simulation: arms one after another against the real TorchServe (``elasticlm simulate``)."""

import argparse
import itertools
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pandas as pd

from elasticlm.benchmarks.arrivals import RAMP, at_load, open_arrivals_s, parse_arrivals
from elasticlm.benchmarks.calibrate import measure_capacity, measure_ingress_ms, rush_users, warm_up
from elasticlm.benchmarks.drive import Drive, DriverError, Traffic, drive
from elasticlm.benchmarks.pinning import pinned
from elasticlm.benchmarks.replay import write_requests
from elasticlm.benchmarks.rush_report import write_report
from elasticlm.benchmarks.served_archive import Archive
from elasticlm.benchmarks.server import ServerError
from elasticlm.benchmarks.servers import TITLES
from elasticlm.benchmarks.summary import COLUMNS, behind, budget_name, lead, rounds, summarise
from elasticlm.benchmarks.workload import RERANK, Workload, build_workload, shortener
from elasticlm.command import print_result, print_table, progress, say
from elasticlm.errors import InputError
from elasticlm.files import new_folder
from elasticlm.machine import machine
from elasticlm.model.elastic_model import ElasticModel
from elasticlm.model.structure import Choice, level_name
from elasticlm.model.teacher import passage_encoder
from elasticlm.retrieval.data_specs import load_corpus, load_retrieval
from elasticlm.retrieval.passage_index import PassageIndex
from elasticlm.schedule.policies import parse_policy
from elasticlm.serving.settings import Settings

UNBOUNDED = 100_000  # size of a queue that is never full
SERVICE_TIMES = (5.0, 7.5, 10.0)  # --budgets auto, in service times of the largest level: the paper's ratio


def run_simulation(options: argparse.Namespace) -> int:
    """Run what the options name."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the server is stopped whatever ends this
    try:
        with tempfile.TemporaryDirectory(prefix="simulate-") as folder:
            summary = simulate(options, Path(folder))
    except (ServerError, DriverError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print_table(_rows(summary))
    say(f"open {options.output / 'index.html'} in a browser")
    print_result({"output": str(options.output), **summary})
    return 1 if "unfinished" in summary else 0


def simulate(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Run every arm and write the report; returns the summary. `folder` is for temporary files."""
    archive = Archive.unpack(options.archive, folder / "archive", options.server)
    names = options.arms or ["deadline", "queue", *(f"fixed:{level_name(archive.levels[end])}" for end in (0, -1))]
    if options.load and not options.arrivals:
        raise InputError("--load goes with --arrivals; the load of a closed loop is its --users")
    arrivals = parse_arrivals(options.arrivals) if options.arrivals else None
    _check_arms(names, archive)
    wanted = "score" if options.workload.startswith(RERANK) else "embed"
    if archive.task != wanted:
        raise InputError(f"--workload {options.workload} asks a model of task {wanted!r}; {options.archive} is of task "
                         f"{archive.task!r}")  # fmt: skip
    if archive.is_pipeline and options.index:
        raise InputError(f"--index: {options.archive} reranks what it finds itself, and answers no embeddings")
    data = load_retrieval(options.data, options.split)
    hits = archive.index is not None and options.index is None
    workload = build_workload(options.workload, data, hits=hits, shorten=shortener(archive.artifact, options.tokens))
    answers = "scores" if workload.lists is not None else "hits" if hits else "embeddings"
    index = _passage_index(options, archive) if answers == "embeddings" else None
    requests_file = folder / "requests.jsonl"
    write_requests(requests_file, workload.requests)

    traffic = Traffic(
        duration_s=options.duration, users=options.users or 1, spawn_rate=options.spawn_rate or 1.0,
        pause_s=options.pause, arrivals=options.arrivals, seed=options.seed,
        request_start=not options.no_request_start,
    )  # fmt: skip
    capacity_rps: dict[Choice, float] = {}
    if options.budgets is None or options.load or (options.users is None and not arrivals):
        capacity_rps = {level: measure_capacity(archive, level, requests_file, workload.requests, traffic,
                                                pin=options.pin)
                        for level in (archive.largest, archive.smallest)}  # fmt: skip
    budgets_ms = options.budgets or _budgets_from(archive, capacity_rps)
    arms = arms_of(names, budgets_ms)
    ingress_ms = None
    if options.load:
        ingress_ms = measure_ingress_ms(archive, requests_file, workload.requests, traffic, pin=options.pin)
        rate_rps = options.load * capacity_rps[archive.largest]
        times_s = at_load(open_arrivals_s(options.arrivals, options.requests, options.seed), rate_rps, options.arrivals)
        window = folder / "window.csv"
        window.write_text("t_s\n" + "".join(f"{time_s:.4f}\n" for time_s in times_s))
        traffic = replace(traffic, duration_s=round(float(times_s[-1]) + 0.1, 1), arrivals=f"trace:{window}")
        say(f"{options.arrivals}: {len(times_s)} arrivals in {traffic.duration_s:g} s, {rate_rps:.1f} per second, "
            f"{options.load:g} of the capacity of level {level_name(archive.largest)}")  # fmt: skip
    elif arrivals:
        count = len(arrivals.times_s(traffic.duration_s, traffic.seed))
        say(f"{arrivals}: {count} arrivals in {traffic.duration_s:g} s")
    else:
        users = options.users
        if users is None:
            largest_rps, smallest_rps = capacity_rps[archive.largest], capacity_rps[archive.smallest]
            users = rush_users(largest_rps, smallest_rps, traffic.pause_s)
        spawn_rate = options.spawn_rate or round(users / (RAMP * traffic.duration_s), 4)
        traffic = replace(traffic, users=users, spawn_rate=spawn_rate)
        offered_rps = traffic.offered_rps or 0.0
        say(f"{users} users, {spawn_rate:.3g} more per second, offer up to {offered_rps:.1f} requests per second"
            + "".join(f", {offered_rps / rps:.2f} times the capacity of level {level_name(level)}"
                      for level, rps in capacity_rps.items()))  # fmt: skip

    drives: list[tuple[str, int, Drive]] = []
    unfinished = ""
    for repeat, (number, arm) in itertools.product(range(options.repeats), enumerate(arms, 1)):
        title = f"[{number}/{len(arms)}] {arm}" + (f", round {repeat + 1}" if options.repeats > 1 else "")
        sent = replace(traffic, seed=options.seed + repeat)
        try:
            drives.append(
                (arm, repeat, run_arm(archive, arm, budgets_ms, requests_file, workload, sent, title, pin=options.pin))
            )
        except (ServerError, DriverError) as error:
            if not drives:
                raise
            unfinished = f"{title}: {error}"
            say(f"error: {unfinished}; what was finished before it is written")
            break
    say("judging the answers")
    trace = judge(drives, workload, index)
    summary: dict[str, Any] = {
        "measure": workload.measure,
        "machine": machine(),
        "arms": summarise(trace, budgets_ms),
        "lead": lead(trace, budgets_ms),
        "workload": {
            "name": workload.name, "data": options.data, "split": data.split, "archive": options.archive.name,
            "answers": answers, "different_requests": len(workload.requests),
        },
        "load": {
            **asdict(traffic), "offered_rps": traffic.offered_rps, "users_auto": options.users is None,
            "capacity_rps": {level_name(level): round(rps, 2) for level, rps in capacity_rps.items()},
        },
        "server": {
            "name": archive.server,
            "batch_size": archive.batch_size, "workers": archive.workers,
            "max_batch_delay_ms": archive.max_batch_delay_ms,
            "overhead_ms": archive.handler.get("overhead_ms", Settings.overhead_ms), "tokens": options.tokens,
            "queue_size": {arm: serving_of(arm, archive, budgets_ms)[1] for arm in arms},
        },
        "client_cpu": {arm: round(driven.client_cpu, 3) for arm, _, driven in drives},
    }  # fmt: skip
    if options.load:
        summary["load"] |= {"arrivals": options.arrivals, "load": options.load, "ingress_ms": ingress_ms}
    if "repeat" in trace:
        summary["rounds"] = {"count": options.repeats, **rounds(trace, budgets_ms)}
    if unfinished:
        summary["unfinished"] = unfinished
    with new_folder(options.output, overwrite=options.overwrite) as output:
        write_requests(output / requests_file.name, workload.requests)
        write_report(output, trace, summary)
    return summary


def run_arm(
    archive: Archive,
    arm: str,
    budgets_ms: Sequence[float],
    requests_file: Path,
    workload: Workload,
    traffic: Traffic,
    title: str,
    *,
    pin: bool = False,
) -> Drive:
    """Serve the archive under the arm's policy and drive the traffic through it."""
    say(f"{title}: starting {TITLES[archive.server]}")
    budget_ms, queue_size, handler = serving_of(arm, archive, budgets_ms)
    with (
        archive.serve(arm, budget_ms, queue_size, handler=handler) as server,
        pinned(server, archive.name, enabled=pin),
    ):
        warm_up(server, archive.name, workload.requests)
        drain_s = 2 * max(budgets_ms) / 1000 + 5
        with progress(total=round(traffic.duration_s), desc=title, unit="s") as bar:
            return drive(
                server.inference_url, archive.name, requests_file, traffic, drain_s=drain_s, on_second=_shown_on(bar)
            )


def serving_of(arm: str, archive: Archive, budgets_ms: Sequence[float]) -> tuple[float, int, dict[str, object]]:
    """Return the latency budget in ms, the bound of the queue and settings of the handler for an arm.

    An arm with a budget refuses what it cannot answer in time, and its queue is as long as the archive's, in proportion
    to the budget. Without one it answers everything, however late, as a static model would be served.
    """
    budget_ms = parse_policy(arm).budget_ms
    if budget_ms is None:
        return budgets_ms[0], UNBOUNDED, {"late": "answer"}
    share = budget_ms / archive.handler.get("latency_budget_ms", budget_ms)
    return budget_ms, max(1, round(share * archive.job_queue_size)), {}


def judge(drives: Sequence[tuple[str, int, Drive]], workload: Workload, index: PassageIndex | None) -> pd.DataFrame:
    """Return the trace of all arms, each answer with its quality; the column `repeat` only where there are several."""
    columns = [*COLUMNS, "repeat"] if any(repeat for _, repeat, _ in drives) else COLUMNS
    traces = []
    for arm, repeat, driven in drives:
        rows = driven.rows.assign(arm=arm, quality=float("nan"), repeat=repeat)
        answered = rows.index[rows["status"] == 200]
        bodies = [driven.bodies[row] for row in answered]
        rows.loc[answered, "quality"] = workload.quality(rows.loc[answered, "query_id"].tolist(), bodies, index)
        traces.append(rows[columns])
    return pd.concat(traces, ignore_index=True)


def arms_of(names: Sequence[str], budgets_ms: Sequence[float]) -> list[str]:
    """The policies to serve under: one without a budget of its own once for each budget that it is judged by.

    >>> arms_of(["queue", "fixed:50", "fixed:50,t=250"], [250, 500])
    ['queue:t=250', 'queue:t=500', 'fixed:50', 'fixed:50,t=250']
    """
    policies = (parse_policy(name, default_budget_ms=budget_ms) for name in names for budget_ms in budgets_ms)
    return list(dict.fromkeys(map(str, policies)))


def _check_arms(names: Sequence[str], archive: Archive) -> None:
    """Raise InputError where an arm's policy cannot run, before anything is started."""
    for name in names:
        try:
            parse_policy(name, default_budget_ms=1.0).check(archive.levels)
        except InputError as error:
            raise InputError(f"arm {name!r}: {error}") from None
    if len(set(names)) < len(names):
        raise InputError(f"--arms {' '.join(names)}: duplicate arm")


def _budgets_from(archive: Archive, capacity_rps: dict[Choice, float]) -> list[float]:
    service_ms = 1000 * archive.workers * archive.batch_size / capacity_rps[archive.largest]
    budgets_ms = [float(f"{service_ms * times:.2g}") for times in SERVICE_TIMES]
    say(f"latency budgets {', '.join(map(budget_name, budgets_ms))} ms: {', '.join(f'{x:g}' for x in SERVICE_TIMES)} "
        f"times the {service_ms:.3g} ms of level {level_name(archive.largest)}")  # fmt: skip
    return budgets_ms


def _passage_index(options: argparse.Namespace, archive: Archive) -> PassageIndex:
    """Return the index that embeddings are judged against: the given one, else the corpus encoded now."""
    model = ElasticModel.from_pretrained(archive.artifact)
    if options.index:
        index = PassageIndex.load(options.index, options.ids)
        index.check(model)
        return index
    corpus, encoder = load_corpus(options.data).findable, passage_encoder(model, options.teacher)
    say(f"encoding {len(corpus.ids)} passages, to judge answers by (an --index saves this)")
    vectors = encoder.embed(corpus.passages, kind="passage", show_progress=True).numpy()
    return PassageIndex.build(vectors, corpus.ids, fingerprint=encoder.fingerprint(), corpus_sha256=corpus.sha256)


def _shown_on(bar: Any) -> Callable[[float, list[dict[str, str]]], None]:
    """Return what shows the newest requests on a progress bar."""

    def show(elapsed_s: float, latest: list[dict[str, str]]) -> None:
        if latest:
            last = latest[-1]
            bar.set_postfix_str(
                f"{last['users']} users, level {last['level']}, {float(last['latency_ms']):.0f} ms", False
            )
        bar.update(min(round(elapsed_s), bar.total) - bar.n)

    return show


def _rows(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the result as a table for people: one row per arm and budget."""
    return [
        {"arm": arm, "T ms": budget, "in time %": round(100 * judged["within_budget"], 1),
         "effective": judged["effective_quality"], "behind the first by": behind(summary, arm, budget),
         summary["measure"]: figures["quality"] or 0.0,
         "p50 ms": figures["p50_ms"] or 0.0, "p95 ms": figures["p95_ms"] or 0.0,
         "requests": figures["requests"], "failed": figures["failures"]}
        for arm, figures in summary["arms"].items()
        for budget, judged in figures["budgets"].items()
    ]  # fmt: skip
