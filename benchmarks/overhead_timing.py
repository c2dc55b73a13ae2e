"""Timing whole requests next to the bare forward pass (``elasticlm overhead``)."""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import pandas as pd
import requests
import torch

from elasticlm.benchmarks.served_archive import Archive
from elasticlm.benchmarks.server import ServerError
from elasticlm.benchmarks.servers import TITLES
from elasticlm.benchmarks.signal_comparison import timings
from elasticlm.command import print_result, print_table, progress
from elasticlm.errors import InputError
from elasticlm.files import new_folder
from elasticlm.machine import machine
from elasticlm.model.elastic_model import ElasticModel
from elasticlm.model.folder import LATENCY_FILE
from elasticlm.model.structure import Choice, Level, Pair, level_name, parse_level
from elasticlm.schedule.latency import LatencyTable, read_tables
from elasticlm.schedule.profiling import batch_of

SHAPES = {"embed": (1, 16), "score": (8, 128)}  # rows and tokens
WARM_UP = 10
ROUND = 20  # requests in a row on the same level


def time_overhead(options: argparse.Namespace) -> int:
    """Run what the options name."""
    with tempfile.TemporaryDirectory(prefix="overhead-") as folder:
        archive = Archive.unpack(options.archive, Path(folder), options.server)
        if archive.task not in SHAPES:
            raise InputError(f"{options.archive}: task {archive.task!r}; expected {' or '.join(SHAPES)}")
        level = parse_level(options.level) if options.level else archive.largest
        if level not in archive.levels:
            raise InputError(f"--level {options.level}: {options.archive} has {', '.join(map(str, archive.levels))}")
        assert not isinstance(level, Pair), "only a two-stage archive has pairs, and its task is refused above"
        if options.switching:
            return report_switching(archive, options)
        shape = shape_of(archive.task, options.tokens)
        whole, stages, bare = measure(archive, level, options.requests, shape)
    ratio = float(whole.median() / bare.median())
    rows = breakdown(whole, stages, bare, TITLES[options.server])
    with new_folder(options.output, overwrite=options.overwrite) as output:
        pd.DataFrame(rows).to_csv(output / "overhead.csv", index=False)
    print_table(rows)
    result = {"output": str(options.output), "server": options.server, "machine": machine(),
              "shape": "x".join(map(str, shape)), "level": level_name(level), "requests": len(whole),
              "ratio": round(ratio, 3), "stages": rows}  # fmt: skip
    print_result(result)
    return int(options.most is not None and ratio > options.most)


def shape_of(task: str, tokens: int | None) -> tuple[int, int]:
    """Return rows and tokens of a request of a task."""
    rows, usual_tokens = SHAPES[task]
    return rows, tokens or usual_tokens


def measure(
    archive: Archive, level: Level, count: int, shape: tuple[int, int]
) -> tuple[pd.Series, pd.DataFrame, pd.Series]:
    """Ask and run requests of this shape in turn. Returns, in ms: whole requests, their stages, and bare passes."""
    setup = {name: archive.handler[name] for name in ("backend", "precision", "threads")}
    torch.set_num_threads(setup["threads"])  # as in the server
    model = ElasticModel.from_pretrained(archive.artifact, **setup)
    body, inputs = request_and_batch(model, shape)
    whole, headers, bare = [], [], []
    with archive.serve(f"fixed:{level_name(level)}", 1000.0, 1000) as server, requests.Session() as session:
        url = f"{server.inference_url}/predictions/{archive.name}"
        for _ in progress(range(WARM_UP + count), desc="requests", unit="request"):
            started = time.perf_counter()
            reply = session.post(url, json=body, timeout=60)
            whole.append((time.perf_counter() - started) * 1e3)
            reply.raise_for_status()
            headers.append(reply.headers["Server-Timing"])
            started = time.perf_counter()
            model.encode(inputs, level)
            bare.append((time.perf_counter() - started) * 1e3)
    stages = timings(pd.Series(headers[WARM_UP:]))
    return pd.Series(whole[WARM_UP:]), stages.drop(columns="wait"), pd.Series(bare[WARM_UP:])


def report_switching(archive: Archive, options: argparse.Namespace) -> int:
    """Measure, print and write what changing the level costs."""
    shape = shape_of(archive.task, options.tokens)
    times = switching(archive, options.requests, shape)
    medians = times.groupby(["level", "kind"]).ms.median().unstack()
    ratio = float(medians.switching.sum() / medians.staying.sum())
    with new_folder(options.output, overwrite=options.overwrite) as output:
        times.to_csv(output / "switching.csv", index=False)
    rows = [{"level": level, **row} for level, row in medians.round(3).to_dict("index").items()]
    print_table(rows)
    result = {"output": str(options.output), "machine": machine(), "requests": len(times),
              "shape": "x".join(map(str, shape)), "ratio": round(ratio, 4), "median_ms": rows}  # fmt: skip
    print_result(result)
    return int(options.most is not None and ratio > options.most)


def switching(archive: Archive, count: int, shape: tuple[int, int]) -> pd.DataFrame:
    """Whole requests of this shape in ms, with columns `level` and `kind`: "staying" on it, or "switching" to it."""
    body, _ = request_and_batch(ElasticModel.from_pretrained(archive.artifact), shape)
    budgets_ms = {archive.largest: "60000", archive.smallest: "500"}
    _tell_levels_apart(archive)
    rows = []
    with (
        archive.serve("deadline", 60_000.0, 1000, handler={"correct_table": False}) as server,
        requests.Session() as session,
    ):
        url = f"{server.inference_url}/predictions/{archive.name}"

        def ask(level: Choice) -> float:
            started = time.perf_counter()
            reply = session.post(url, json=body, headers={"X-Latency-Budget-Ms": budgets_ms[level]}, timeout=60)
            took_ms = (time.perf_counter() - started) * 1e3
            reply.raise_for_status()
            if reply.headers["X-Elastic-Level"] != level_name(level):
                raise ServerError(f"level {reply.headers['X-Elastic-Level']} answered, not {level_name(level)}")
            return took_ms

        for number in progress(range(-1, -(-count // ROUND)), desc="rounds", unit="round"):
            found = []
            for level in budgets_ms:
                found += [(level_name(level), "staying", ask(level)) for _ in range(ROUND + 1)][1:]
            for _ in range(ROUND):
                found += [(level_name(level), "switching", ask(level)) for level in budgets_ms]
            rows += found if number >= 0 else []  # the first round warms up
    return pd.DataFrame(rows, columns=["level", "kind", "ms"])


def _tell_levels_apart(archive: Archive) -> None:
    """Write into the unpacked archive that its smallest level takes a millisecond and all others a second."""
    file = archive.artifact / LATENCY_FILE
    levels = [level for level in archive.levels if not isinstance(level, Pair)]
    apart = LatencyTable.from_means({level: 1.0 if level == archive.smallest else 1e3 for level in levels})
    for table in read_tables(file):
        LatencyTable(apart.cells, table.setup, table.notes).write(file)


def request_and_batch(model: ElasticModel, shape: tuple[int, int]) -> tuple[dict[str, Any], Any]:
    """The request of an archive's task, and its tokenised batch of exactly these rows and tokens."""
    texts, passages = batch_of(model, *shape)
    if passages is None:
        return {"text": texts[0]}, model.tokenize(texts)
    return {"query": texts[0], "passages": passages}, model.tokenize_pairs(texts, passages)


def breakdown(whole: pd.Series, stages: pd.DataFrame, bare: pd.Series, server: str) -> list[dict[str, Any]]:
    """Means of the stages, which add up to that of the whole; medians next to them; and the bare pass."""
    parts = {name: stages[name] for name in stages} | {f"{server} and wire": whole - stages.sum(axis=1)}
    rows = [*parts.items(), ("whole request", whole), ("bare forward pass", bare)]
    return [{"stage": name, "mean ms": round(float(ms.mean()), 3), "median ms": round(float(ms.median()), 3),
             "share of the whole %": round(100 * float(ms.mean() / whole.mean()), 1)}
            for name, ms in rows]  # fmt: skip
