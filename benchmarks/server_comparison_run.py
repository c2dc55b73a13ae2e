"""The same load on several servers (``elasticlm servers``)."""

import argparse
import importlib.util
import json
import signal
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from elasticlm.benchmarks.calibrate import measure_capacity, warm_up
from elasticlm.benchmarks.drive import Traffic, drive
from elasticlm.benchmarks.lit_server import LitServer
from elasticlm.benchmarks.replay import write_requests
from elasticlm.benchmarks.rush_simulation import UNBOUNDED, serving_of
from elasticlm.benchmarks.served_archive import Archive
from elasticlm.benchmarks.servers import RunningServer
from elasticlm.benchmarks.summary import in_time
from elasticlm.benchmarks.workload import build_workload, shortener
from elasticlm.command import print_result, print_table, say
from elasticlm.errors import InputError
from elasticlm.files import new_folder
from elasticlm.machine import machine
from elasticlm.model.structure import level_name
from elasticlm.retrieval.data_specs import load_retrieval


def compare_servers(options: argparse.Namespace) -> int:
    """Run what the options name."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the server is stopped whatever ends this
    with tempfile.TemporaryDirectory(prefix="servers-") as name:
        folder = Path(name)
        elastic = Archive.unpack(options.archive, folder / "elastic")
        static = Archive.unpack(options.static, folder / "static") if options.static else elastic
        for archive in (elastic, static):
            if archive.task != "embed" or archive.is_pipeline:
                raise InputError(f"{archive.name}: expected an archive that answers embeddings")
        data = load_retrieval(options.data, options.split)
        workload = build_workload("query", data, hits=False, shorten=shortener(elastic.artifact, None))
        requests_file = folder / "requests.jsonl"
        write_requests(requests_file, workload.requests)
        budget_ms = options.budget or elastic.handler["latency_budget_ms"]
        once = Traffic(duration_s=1.0, seed=options.seed)
        capacity_rps = measure_capacity(elastic, elastic.largest, requests_file, workload.requests, once)
        rows = []
        for title, archive, served in _servers(elastic, static, budget_ms):
            with served() as server:
                warm_up(server, archive.name, workload.requests)
                for load in options.loads:
                    traffic = Traffic(duration_s=options.duration, arrivals=f"poisson:{load * capacity_rps:.2f}",
                                      seed=options.seed)  # fmt: skip
                    drain_s = 2 * budget_ms / 1e3 + 5
                    driven = drive(server.inference_url, archive.name, requests_file, traffic, drain_s=drain_s).rows
                    rows.append(_row(title, load * capacity_rps, driven, budget_ms, options.duration))
                    say(str(rows[-1]))
        table = pd.DataFrame(rows)
        result = {"machine": machine(), "budget_ms": budget_ms, "capacity_rps": round(capacity_rps, 1),
                  "precision": {"elastic": elastic.handler["precision"], "static": static.handler["precision"]},
                  "rows": rows}  # fmt: skip
        with new_folder(options.output, overwrite=options.overwrite) as output:
            table.to_csv(output / "servers.csv", index=False)
            (output / "servers.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print_table(rows)
    print_result({"output": str(options.output), **result})
    return 0


def _servers(
    elastic: Archive, static: Archive, budget_ms: float
) -> list[tuple[str, Archive, Callable[[], RunningServer]]]:
    """Return name, archive and a way to start it, of each server."""
    largest, policy = f"fixed:{level_name(static.largest)}", f"deadline:t={budget_ms}"
    _, waiting, _ = serving_of(policy, elastic, [budget_ms])
    on_ray = replace(elastic, server="ray")
    setup = {name: static.handler[name] for name in ("backend", "precision", "threads")}
    found: list[tuple[str, Archive, Callable[[], Any]]] = [
        ("TorchServe, elastic", elastic, lambda: elastic.serve(policy, budget_ms, waiting)),
        ("Ray Serve, elastic", elastic, lambda: on_ray.serve(policy, budget_ms, waiting)),
        ("TorchServe, static", static,
         lambda: static.serve(largest, budget_ms, UNBOUNDED, handler={"late": "answer"})),
    ]  # fmt: skip
    if importlib.util.find_spec("litserve"):
        found.append(("LitServe, static", static, lambda: LitServer(static.artifact, static.name, setup)))
    return found


def _row(title: str, offered_rps: float, rows: pd.DataFrame, budget_ms: float, duration_s: float) -> dict[str, Any]:
    answered = rows[rows.status == 200]
    timely = in_time(rows, budget_ms)
    levels = answered.level.value_counts(normalize=True).round(2)
    return {
        "server": title, "offered rps": round(offered_rps, 1),
        "in time rps": round(float(timely.sum()) / duration_s, 1),
        "in time %": round(100 * float(timely.mean()), 1), "p50 ms": round(float(answered.latency_ms.median()), 1),
        "levels": ", ".join(f"{level}: {share:g}" for level, share in levels.items()),
    }  # fmt: skip
