"""Minutes of rushes against the real server, and what grows (``elasticlm soak``)."""

import argparse
import http.client
import itertools
import json
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import psutil

from elasticlm.benchmarks.served_archive import Archive
from elasticlm.benchmarks.server import TorchServe
from elasticlm.command import print_result, print_table, progress
from elasticlm.files import new_folder
from elasticlm.machine import machine

SAMPLE_S = 5.0
WAVE_S = 60.0  # users grow for half of it, then fall
SETTLED = 1 / 3  # share of the run after which nothing should grow
GROWTH = {"memory_mib": 0.05, "files": 0.0, "threads": 0.0}  # of the median before: more is a leak
SPARE = {"memory_mib": 8.0, "files": 3.0, "threads": 3.0}  # and by at least so many
BAD_BODIES = (
    b"{",
    b"[" * 2000,
    b'{"txt": "a"}',
    b'{"text": ""}',
    b'{"text": 7}',
    b"\xff\xfe",
    b'{"query": "a", "k": 0}',
)
TEXTS = ("how do glaciers form", "what makes the sea salty", "why is the night sky dark " * 6, "tides", "🌊 and 🌙")


def run_soak(options: argparse.Namespace) -> int:
    """Run what the options name."""
    plt.switch_backend("Agg")
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        archive = Archive.unpack(options.archive, Path(folder) / "archive")
        with archive.serve(options.policy, options.budget, 1000) as server:
            samples, statuses = soak(server, archive.name, options.minutes * 60, options.users)
    grown = growth(samples)
    leaks = [f"{row['process']} {row['measure']}" for row in grown if row["leak"]]
    summary = {"machine": machine(), "minutes": options.minutes, "statuses": dict(sorted(statuses.items())),
               "processes": grown, "leaks": leaks}  # fmt: skip
    with new_folder(options.output, overwrite=options.overwrite) as output:
        samples.to_csv(output / "soak.csv", index=False)
        (output / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
        draw(samples, output / "soak.png")
    print_table(grown)
    print_result({"output": str(options.output), **summary})
    return 1 if leaks or not statuses["200"] else 0


def soak(server: TorchServe, name: str, seconds: float, users: int) -> tuple[pd.DataFrame, Counter[str]]:
    """Send requests for so long; return the samples of the server's processes, and how often each status came."""
    host = server.inference_url.removeprefix("http://")
    statuses: Counter[str] = Counter()
    start, lock = time.monotonic(), threading.Lock()
    stop = threading.Event()

    def user(number: int) -> None:
        """Sends while its place in the wave is taken."""
        random = np.random.default_rng(number)
        connection = http.client.HTTPConnection(host, timeout=30)
        while not stop.is_set():
            share = abs((time.monotonic() - start) % WAVE_S / WAVE_S * 2 - 1)  # 1 at the ends, 0 in the middle
            if number >= users * (1 - share) and number:
                stop.wait(0.2)
                continue
            draw = random.random()
            body = json.dumps({"text": TEXTS[random.integers(len(TEXTS))]}).encode()
            if draw < 0.05:
                body = BAD_BODIES[random.integers(len(BAD_BODIES))]
            try:
                connection.request("POST", f"/predictions/{name}", body, {"Content-Type": "application/json"})
                if 0.05 <= draw < 0.07:
                    connection.close()  # gone before the answer
                    outcome = "left"
                else:
                    reply = connection.getresponse()
                    reply.read()
                    outcome = str(reply.status)
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                outcome = type(error).__name__
            with lock:
                statuses[outcome] += 1

    threads = [threading.Thread(target=user, args=(number,), daemon=True) for number in range(users)]
    for thread in threads:
        thread.start()
    rows: list[dict[str, Any]] = []
    bar = progress(total=round(seconds), desc="soak", unit="s")
    try:
        for number in itertools.count(1):
            wait = start + number * SAMPLE_S - time.monotonic()
            if start + seconds - time.monotonic() < max(0.0, wait):
                break
            time.sleep(max(0.0, wait))
            rows += sample(server, time.monotonic() - start)
            bar.update(round(SAMPLE_S))
    finally:
        stop.set()
        for thread in threads:
            thread.join(40)
        bar.close()
    return pd.DataFrame(rows), statuses


def sample(server: TorchServe, t_s: float) -> list[dict[str, Any]]:
    """Memory (PSS: shared pages in parts), open files and threads of the server's processes, Java and workers."""
    assert server.process is not None
    family = psutil.Process(server.process.pid).children(recursive=True)
    rows = []
    for process in family:
        try:
            kind = (
                "java"
                if "java" in process.name()
                else "worker"
                if "model_service_worker" in str(process.cmdline())
                else ""
            )
            if kind:
                rows.append({"t_s": round(t_s, 1), "process": f"{kind} {process.pid}",
                             "memory_mib": round(process.memory_full_info().pss / 2**20, 1),
                             "files": process.num_fds(), "threads": process.num_threads()})  # fmt: skip
        except psutil.NoSuchProcess:
            continue
    return rows


def growth(samples: pd.DataFrame) -> list[dict[str, Any]]:
    """For each process and measure: medians of the second and of the last third, and whether that is a leak.

    Java's heap grows to its limit before it is collected: its memory is reported but not counted as a leak.
    """
    end = samples["t_s"].max()
    rows = []
    for process, own in samples.groupby("process", sort=False):
        for measure in GROWTH:
            thirds = [own[measure][own["t_s"].between(low * end, high * end)].median()
                      for low, high in ((SETTLED, 2 * SETTLED), (2 * SETTLED, 1))]  # fmt: skip
            before, after = (float(third) for third in thirds)
            leak = after - before > max(SPARE[measure], GROWTH[measure] * before)
            leak = leak and not (measure == "memory_mib" and str(process).startswith("java"))
            rows.append({"process": process, "measure": measure, "second third": before, "last third": after,
                         "leak": leak})  # fmt: skip
    return rows


def draw(samples: pd.DataFrame, file: Path) -> None:
    """One curve per process, one picture per measure."""
    figure, axes = plt.subplots(len(GROWTH), 1, figsize=(8, 8), sharex=True, layout="constrained")
    for axis, measure in zip(axes, GROWTH, strict=True):
        for process, own in samples.groupby("process", sort=False):
            axis.plot(own["t_s"] / 60, own[measure], label=process)
        axis.set_ylabel(measure.replace("_mib", ", MiB (PSS)"))
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize="small")
    axes[-1].set_xlabel("minutes")
    figure.savefig(file, dpi=110)
    plt.close(figure)
