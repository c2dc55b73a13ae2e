"""Overload and faults on the real server (``elasticlm stress``)."""

import argparse
import json
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pandas as pd
import requests

from elasticlm.benchmarks.calibrate import measure_capacity, warm_up
from elasticlm.benchmarks.drive import Traffic, drive
from elasticlm.benchmarks.pinning import pinned
from elasticlm.benchmarks.replay import Request, write_requests
from elasticlm.benchmarks.served_archive import Archive
from elasticlm.benchmarks.server import TorchServe
from elasticlm.benchmarks.summary import in_time
from elasticlm.benchmarks.workload import build_workload, shortener
from elasticlm.command import print_result, print_table, say
from elasticlm.errors import InputError
from elasticlm.files import new_folder
from elasticlm.hints import unknown
from elasticlm.machine import machine
from elasticlm.model.structure import level_name
from elasticlm.retrieval.data_specs import load_retrieval

FIRST_LOAD, LOAD_STEP = 0.85, 1.12  # offered to the smallest level, relative to its calibrated capacity
WARM_UP_S = 8.0
CAPACITY_S = 15.0
RECOVERY_S = 2.0
GOODPUT, IN_TIME = 0.85, 0.95  # goals
RUSH = 2.0  # offered load with faults, in capacities of the largest level


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong while a rush is served.

    Attributes:
        handler: settings of the handler.
        during: a context in which the fault happens, given the running server and the model's name.
        port: what answers at the management address, if it is not the server.
        start_offset_s: by how much X-Request-Start is too early.
    """

    handler: Mapping[str, object] = field(default_factory=dict)
    during: Callable[[TorchServe, str], AbstractContextManager[Any]] = lambda server, name: nullcontext()
    port: type[BaseHTTPRequestHandler] | None = None
    token_auth: bool = False
    start_offset_s: float = 0.0


class Website(BaseHTTPRequestHandler):
    """Answers everything with 200 and a page."""

    def do_GET(self) -> None:
        self._answer(b"<html>welcome</html>")

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        pass


class SlowProxy(Website):
    """The management API, 50 ms late."""

    target = ""

    def do_GET(self) -> None:
        time.sleep(0.05)
        self._answer(requests.get(SlowProxy.target + self.path, timeout=5).content)


@contextmanager
def rotated_tokens(server: TorchServe, name: str) -> Iterator[None]:
    """Replace the management token every two seconds."""

    def rotate() -> None:
        reply = requests.get(f"{server.management_url}/token?type=management", headers=server.headers("API"), timeout=5)
        reply.raise_for_status()

    with _repeated(rotate, 2.0):
        yield


@contextmanager
def half_speed(server: TorchServe, name: str) -> Iterator[None]:
    """Stop the worker for 5 of every 10 ms."""
    pids = [worker["pid"] for worker in server.workers(name)]

    def pause() -> None:
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        time.sleep(0.005)
        for pid in pids:
            os.kill(pid, signal.SIGCONT)

    with _repeated(pause, 0.005):
        yield


@contextmanager
def _repeated(action: Callable[[], None], every_s: float) -> Iterator[None]:
    """Do something again and again in the background."""
    stop = threading.Event()

    def loop() -> None:
        while not stop.wait(every_s):
            action()

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@contextmanager
def settings_of(fault: Fault) -> Iterator[dict[str, object]]:
    """Yield the handler's settings for a fault; run what answers at the management address in place of the server."""
    if fault.port is None:
        yield dict(fault.handler)
        return
    with ThreadingHTTPServer(("127.0.0.1", 0), fault.port) as port:
        threading.Thread(target=port.serve_forever, daemon=True).start()
        yield {"management_url": f"http://127.0.0.1:{port.server_port}"} | dict(fault.handler)
        port.shutdown()


FAULTS = {
    "none": Fault(),
    "probe-off": Fault(handler={"management_url": ""}),
    "probe-slow": Fault(port=SlowProxy),
    "foreign-port": Fault(port=Website),
    "tokens": Fault(during=rotated_tokens, token_auth=True),
    "start-wrong": Fault(start_offset_s=0.5),
    "half-speed": Fault(during=half_speed),
}


def run_stress(options: argparse.Namespace) -> int:
    """Run what the options name."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the server is stopped whatever ends this
    faults = ["none", *(FAULTS if options.faults is None else options.faults)]
    for name in faults:
        if name not in FAULTS:
            raise InputError(f"--faults: {unknown('fault', name, FAULTS)}")
    with tempfile.TemporaryDirectory(prefix="stress-") as name:
        folder = Path(name)
        archive = Archive.unpack(options.archive, folder / "archive")
        budget_ms = options.budget or archive.handler["latency_budget_ms"]
        data = load_retrieval(options.data, options.split)
        workload = build_workload(
            options.workload, data, hits=False, shorten=shortener(archive.artifact, options.tokens)
        )
        requests_file = folder / "requests.jsonl"
        write_requests(requests_file, workload.requests)
        once = Traffic(duration_s=1.0, seed=options.seed)
        smallest_rps, largest_rps = (
            measure_capacity(archive, level, requests_file, workload.requests, once, pin=options.pin)
            for level in (archive.smallest, archive.largest)
        )
        stress = Stress(archive, budget_ms, options, requests_file, workload.requests, smallest_rps, largest_rps)
        overload = stress.overload(options.overload) if options.overload else {}
        broken = stress.faults(list(dict.fromkeys(faults))) if options.faults != [] else {}
    rows = [{"load": load, **figures} for load, figures in overload.get("loads", {}).items()]
    fault_rows = [{"fault": fault, **figures} for fault, figures in broken.get("faults", {}).items()]
    holds = all(row["holds"] for row in rows + fault_rows)
    result = {"machine": machine(), "budget_ms": budget_ms, "policy": options.policy, "overload": overload,
              "rush": broken, "holds": holds}  # fmt: skip
    with new_folder(options.output, overwrite=options.overwrite) as output:
        (output / "stress.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print_table(rows)
    print_table(fault_rows)
    print_result({"output": str(options.output), **result})
    return 0 if holds else 1


@dataclass(frozen=True)
class Stress:
    """One archive under load."""

    archive: Archive
    budget_ms: float
    options: argparse.Namespace
    requests_file: Path
    asked: list[Request]
    warm_rps: float
    largest_rps: float

    def overload(self, times: list[float]) -> dict[str, Any]:
        """Measure the smallest level's capacity, then the policy under multiples of it.

        The machine may be faster or slower at another time, so that the smallest level is measured again before and
        after each load, and its mean goodput there is the capacity that the policy is compared with.
        """
        goodputs: dict[float, float] = {}
        offered_rps, falling = FIRST_LOAD * self.warm_rps, 0
        with self._served_at_smallest() as server:
            while falling < 2:  # until more load brings less
                goodput_rps = self._smallest_goodput_rps(server, offered_rps)
                falling = falling + 1 if goodput_rps < max(goodputs.values(), default=0.0) else 0
                goodputs[round(offered_rps, 1)] = goodput_rps
                offered_rps *= LOAD_STEP
        best_rps = max(goodputs, key=lambda offered: goodputs[offered])
        loads, before_rps = {}, goodputs[best_rps]
        for each in times:
            with self._served(self.options.policy) as server:
                traffic = Traffic(
                    duration_s=self.options.duration, arrivals=f"poisson:{each * goodputs[best_rps]:.2f}",
                    seed=self.options.seed,
                )  # fmt: skip
                rows = self._drive(server, traffic)
                recovered_s = self._recovery_s(server)
            with self._served_at_smallest() as server:
                after_rps = self._smallest_goodput_rps(server, best_rps)
            capacity_rps, before_rps = (before_rps + after_rps) / 2, after_rps
            goodput_rps = float(in_time(rows, self.budget_ms).sum()) / self.options.duration
            p99_ms = float(rows.latency_ms[rows.status == 200].quantile(0.99))  # NaN if none was answered
            loads[f"{each:g}"] = {
                "offered rps": round(each * goodputs[best_rps], 1), "goodput rps": round(goodput_rps, 1),
                "capacity rps": round(capacity_rps, 1), "of capacity": round(goodput_rps / capacity_rps, 3),
                "p99 ms": round(p99_ms, 1), **_statuses(rows), "levels": _level_shares(rows),
                "recovered s": recovered_s,
                "holds": bool(goodput_rps >= GOODPUT * capacity_rps and p99_ms <= self.budget_ms
                              and recovered_s is not None),
            }  # fmt: skip
            say(f"{each:g} times the capacity: {loads[f'{each:g}']}")
        return {"calibrated_rps": round(self.warm_rps, 1), "goodput_rps_by_offered_rps": goodputs, "loads": loads}

    def _served_at_smallest(self) -> AbstractContextManager[TorchServe]:
        return self._served(f"fixed:{level_name(self.archive.smallest)}", handler={"late": "answer"})

    def _smallest_goodput_rps(self, server: TorchServe, offered_rps: float) -> float:
        """Return what the smallest level answers in time, in requests per second."""
        rows = self._drive(server, Traffic(duration_s=CAPACITY_S, arrivals=f"poisson:{offered_rps:.2f}"))
        goodput_rps = round(float(in_time(rows, self.budget_ms).sum()) / CAPACITY_S, 2)
        say(f"the smallest level at {offered_rps:.1f} requests per second: {goodput_rps:.1f} in time")
        return goodput_rps

    def faults(self, names: list[str]) -> dict[str, Any]:
        """Serve a rush with each fault."""
        users = max(1, round(2 * RUSH * self.largest_rps))  # pauses of 2 s in the mean
        found = {}
        for name in names:
            fault = FAULTS[name]
            traffic = Traffic(duration_s=self.options.duration, users=users, seed=self.options.seed,
                              spawn_rate=users / (self.options.duration / 4),
                              start_offset_s=fault.start_offset_s)  # fmt: skip
            with (
                settings_of(fault) as handler,
                self._served(self.options.policy, handler=handler, token_auth=fault.token_auth) as server,
            ):
                SlowProxy.target = server.management_url
                with fault.during(server, self.archive.name):
                    rows = self._drive(server, replace(traffic, token=server.token()))
            share = float(in_time(rows, self.budget_ms).mean())
            found[name] = {"requests": len(rows), "in time %": round(100 * share, 2), **_statuses(rows),
                           "levels": _level_shares(rows),
                           "holds": share >= IN_TIME}  # fmt: skip
            say(f"{name}: {found[name]}")
        return {"largest_rps": round(self.largest_rps, 1), "users": users, "faults": found}

    @contextmanager
    def _served(
        self, policy: str, *, handler: Mapping[str, object] | None = None, token_auth: bool = False
    ) -> Iterator[TorchServe]:
        """Run the archive under a policy, warmed up."""
        served = self.archive.serve(policy, self.budget_ms, None, handler=handler, token_auth=token_auth)
        with served as server, pinned(server, self.archive.name, enabled=self.options.pin):
            warm_up(server, self.archive.name, self.asked)
            arrivals = f"poisson:{self.warm_rps:.2f}"
            self._drive(server, Traffic(duration_s=WARM_UP_S, arrivals=arrivals, token=server.token()))
            time.sleep(1.0)
            yield server

    def _drive(self, server: TorchServe, traffic: Traffic) -> pd.DataFrame:
        drain_s = 2 * self.budget_ms / 1000 + 5
        return drive(server.inference_url, self.archive.name, self.requests_file, traffic, drain_s=drain_s).rows

    def _recovery_s(self, server: TorchServe) -> float | None:
        """Return how long after the load the largest level answers again; None if not within RECOVERY_S."""
        started_s = time.monotonic()
        url = f"{server.inference_url}/predictions/{self.archive.name}"
        while (elapsed_s := time.monotonic() - started_s) < RECOVERY_S:
            reply = requests.post(url, data=self.asked[0].body.encode(), timeout=30)
            if reply.headers.get("X-Elastic-Level") == level_name(self.archive.largest):
                return round(elapsed_s, 2)
            time.sleep(0.05)
        return None


def _level_shares(rows: pd.DataFrame) -> dict[str, float]:
    shares = rows.level[rows.status == 200].value_counts(normalize=True).round(3)
    return {str(level): share for level, share in shares.items()}


def _statuses(rows: pd.DataFrame) -> dict[str, int]:
    counts = {f"{status}s": int((rows.status == status).sum()) for status in (200, 503, 504)}
    return counts | {"other": len(rows) - sum(counts.values())}
