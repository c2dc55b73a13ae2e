"""The load signal compared with the server's true queue (``elasticlm signal``)."""

import argparse
import itertools
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from elasticlm.benchmarks.calibrate import measure_capacity, warm_up
from elasticlm.benchmarks.drive import Drive, Traffic, drive
from elasticlm.benchmarks.replay import Request, standard_library_requests, write_requests
from elasticlm.benchmarks.served_archive import Archive
from elasticlm.benchmarks.server import TorchServe
from elasticlm.command import print_result, print_table, say
from elasticlm.files import new_folder
from elasticlm.machine import machine

BATCH_SIZES, WORKERS = (1, 8), (1, 2)
SIGNALS = {"fill": {"management_url": ""}, "fill and probe": {}}
LOAD, CV = 1.0, 2.0  # of the largest level's capacity, so that queues come and go; bursty
WAITING = 500  # requests in the long queue
BACK_MS = 0.5  # half of a round trip on loopback: from the handler's last stage to the driver


def compare_signals(options: argparse.Namespace) -> None:
    """Run what the options name."""
    requests = standard_library_requests()
    with tempfile.TemporaryDirectory(prefix="signal-") as name:
        folder = Path(name)
        requests_file = folder / "requests.jsonl"
        write_requests(requests_file, requests)
        archive = Archive.unpack(options.archive, folder / "archive")
        traffic = Traffic(duration_s=options.duration, seed=options.seed)
        capacity_rps = measure_capacity(archive, archive.largest, requests_file, requests, traffic)
        rows = []
        for batch_size, workers in itertools.product(BATCH_SIZES, WORKERS):
            arrivals = f"gamma:{LOAD * capacity_rps:.2f},{CV:g}"
            for signal, header in itertools.product(SIGNALS, (False, True)):
                title = f"batches of {batch_size}, {workers} worker(s), {signal}{', X-Request-Start' if header else ''}"
                say(title)
                server = TorchServe(
                    {archive.name: archive.bundle.folder}, batch_size=batch_size, workers=workers,
                    handler={"policy": "deadline", "latency_budget_ms": 5000 / capacity_rps, **SIGNALS[signal]},
                )  # fmt: skip
                sent = Traffic(duration_s=options.duration, arrivals=arrivals, seed=options.seed, request_start=header)
                with server:
                    warm_up(server, archive.name, requests)
                    driven = drive(server.inference_url, archive.name, requests_file, sent, drain_s=10)
                rows.append({"batch size": batch_size, "workers": workers, "signal": signal,
                             "X-Request-Start": "yes" if header else "no", **compare(driven)})  # fmt: skip
        long_queue = [cost_behind_many(archive, signal, 5000 / capacity_rps, requests_file, requests, options)
                      for signal in SIGNALS]  # fmt: skip
        breakdown = alone(archive, requests_file, requests, options)
    with new_folder(options.output, overwrite=options.overwrite) as output:
        pd.DataFrame(rows).to_csv(output / "signal.csv", index=False)
        pd.DataFrame(long_queue).to_csv(output / "long_queue.csv", index=False)
        pd.DataFrame(breakdown).to_csv(output / "breakdown.csv", index=False)
    for table in (rows, long_queue, breakdown):
        print_table(table)
    print_result({"output": str(options.output), "machine": machine(), "signal": rows, "long_queue": long_queue,
                  "breakdown": breakdown})  # fmt: skip


def compare(driven: Drive) -> dict[str, Any]:
    """What the handler believed compared with what the driver saw, and what the signal and the decision cost, ms.

    correlation and bias (believed - true) are those of the requests behind a batch; wait bias and error (median
    absolute) those of the ages.
    """
    rows = driven.rows[driven.rows["status"] == 200]
    stages = timings(rows["timing"])
    sent_s = rows["t_s"].to_numpy()
    back_s = sent_s + rows["latency_ms"].to_numpy() / 1e3 - BACK_MS / 1e3
    taken_s = back_s - stages.drop(columns="wait").sum(axis=1).to_numpy() / 1e3
    waited_ms = np.maximum(0.0, (taken_s - sent_s) * 1e3)
    depth = waiting(sent_s, taken_s)
    believed = rows["queue_depth"].to_numpy(dtype=float)
    varied = depth.std() > 0 and believed.std() > 0
    return {
        "requests": len(rows),
        "true mean": round(float(depth.mean()), 2),
        "correlation": round(float(np.corrcoef(depth, believed)[0, 1]), 3) if varied else float("nan"),
        "bias": round(float((believed - depth).mean()), 2),
        "wait bias ms": round(float((stages["wait"].to_numpy() - waited_ms).mean()), 1),
        "wait error ms": round(float(np.median(np.abs(stages["wait"].to_numpy() - waited_ms))), 1),
        **{f"{stage} {name} ms": round(float(stages[stage].quantile(share)), 3)
           for stage in ("signal", "decide") for name, share in (("p50", 0.5), ("p99", 0.99))},
    }  # fmt: skip


def waiting(sent_s: np.ndarray, taken_s: np.ndarray) -> np.ndarray:
    """Return how many requests had been sent but not taken when each was taken, [requests]; itself and its batch not.

    >>> waiting(np.array([0.0, 1.0, 2.0, 3.0]), np.array([0.0, 4.0, 5.0, 6.0])).tolist()
    [0, 2, 1, 0]
    """
    sent = np.searchsorted(np.sort(sent_s), taken_s, side="right")
    taken = np.searchsorted(np.sort(taken_s), taken_s + 1e-4, side="right")  # batch mates are taken together
    return np.maximum(0, sent - taken)


def timings(headers: pd.Series) -> pd.DataFrame:
    """Server-Timing headers as columns of milliseconds."""
    parsed = ({stage.split(";dur=")[0]: float(stage.split(";dur=")[1]) for stage in header.split(", ")}
              for header in headers)  # fmt: skip
    return pd.DataFrame(parsed, index=headers.index).fillna(0.0)


def cost_behind_many(
    archive: Archive,
    signal: str,
    budget_ms: float,
    requests_file: Path,
    requests: list[Request],
    options: argparse.Namespace,
) -> dict[str, Any]:
    """Return what the signal and the decision cost while WAITING requests wait."""
    say(f"{WAITING} waiting, {signal}")
    handler = {"late": "answer"} | SIGNALS[signal]
    with archive.serve("deadline", budget_ms, 2 * WAITING, handler=handler) as server:
        warm_up(server, archive.name, requests)
        crowd = Traffic(duration_s=options.duration, users=WAITING + 1, spawn_rate=1000.0, pause_s=(0.0, 0.0),
                        seed=options.seed)  # fmt: skip
        rows = drive(server.inference_url, archive.name, requests_file, crowd, drain_s=60).rows
    rows = rows[(rows["status"] == 200) & (rows["t_s"] + rows["latency_ms"] / 1e3 <= options.duration)]
    rows = rows.iloc[len(rows) // 2 :]  # by then all users have sent
    stages = timings(rows["timing"])
    both = stages["signal"] + stages["decide"]
    return {"signal": signal, "waiting": WAITING, "requests": len(rows),
            "believed": float(rows["queue_depth"].median()),
            **{f"{name} p50 ms": round(float(value.median()), 3)
               for name, value in (("signal", stages["signal"]), ("decide", stages["decide"]), ("both", both))},
            }  # fmt: skip


def alone(
    archive: Archive, requests_file: Path, requests: list[Request], options: argparse.Namespace
) -> list[dict[str, Any]]:
    """One user without pauses: the median of every stage, and what is left of the latency: TorchServe and the wire."""
    say("one request at a time")
    with archive.serve("deadline", 1000.0, 1000) as server:
        warm_up(server, archive.name, requests)
        lonely = Traffic(duration_s=options.duration, users=1, pause_s=(0.0, 0.0), seed=options.seed)
        rows = drive(server.inference_url, archive.name, requests_file, lonely, drain_s=5).rows
    stages = timings(rows["timing"]).drop(columns="wait")
    outside = rows["latency_ms"] - stages.sum(axis=1)
    medians = stages.median().to_dict() | {"TorchServe and wire": float(outside.median())}
    total = float(rows["latency_ms"].median())
    parts = [{"stage": stage, "median ms": round(ms, 3), "share %": round(100 * ms / total, 1)}
             for stage, ms in medians.items()]  # fmt: skip
    return [*parts, {"stage": "whole request", "median ms": round(total, 3), "share %": 100.0}]
