"""Run the Locust driver against a server, as a separate process, and read what it recorded."""

import contextlib
import csv
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import psutil

LOCUSTFILE = Path(__file__).with_name("locustfile.py")
ROWS = {"queue_depth": "Int64", "level": "string", "query_id": "string"}


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """What the driver does to the server; two drives with equal traffic send the same requests.

    Closed loop: `users` grow by `spawn_rate` a second, each sends, waits for the answer and pauses. Open loop:
    `arrivals`, a spec of `elasticlm.benchmarks.arrivals`, says when requests are sent.
    """

    duration_s: float
    users: int = 1
    spawn_rate: float = 1.0
    pause_s: tuple[float, float] = (1.0, 3.0)
    arrivals: str | None = None
    seed: int = 0
    request_start: bool = True
    start_offset_s: float = 0.0
    """By how much X-Request-Start is too early."""
    token: str | None = None
    """TorchServe's inference token, if it asks for one."""

    @property
    def offered_rps(self) -> float | None:
        """Requests a second that all users would send to a server that answers at once; None in an open loop."""
        pause_s = sum(self.pause_s) / 2
        return None if self.arrivals or not pause_s else round(self.users / pause_s, 3)


@dataclass(frozen=True)
class Drive:
    """What came of it: one row per request sent in [0, duration), the answers' bodies, and the driver's CPU."""

    rows: pd.DataFrame
    bodies: list[bytes]
    client_cpu: float
    """Share of one core that the driver took while it was sending."""


class DriverError(RuntimeError):
    """Locust ended with an error; the message is the end of its output."""


def drive(
    url: str,
    model: str,
    requests_file: Path,
    traffic: Traffic,
    *,
    drain_s: float,
    on_second: Callable[[float, list[dict[str, str]]], None] = lambda elapsed_s, latest: None,
) -> Drive:
    """Send the traffic to `POST url/predictions/model`; wait up to `drain_s` for the last answers.

    `on_second(elapsed_s, latest)` is called about once a second with the newest rows.
    """
    with tempfile.TemporaryDirectory(prefix="drive-") as folder:
        trace_file, responses_file, output_file = (Path(folder) / name for name in ("trace.csv", "bodies", "output"))
        command = [sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), "--headless", "--only-summary"]
        command += ["--exit-code-on-error", "0", "--loglevel", "WARNING", "--host", url, "--model", model]
        command += ["--users", str(traffic.users), "--spawn-rate", str(traffic.spawn_rate), "--seed", str(traffic.seed)]
        command += ["--pause", "{},{}".format(*traffic.pause_s), "--queries", str(requests_file.resolve())]
        command += ["--duration", str(traffic.duration_s), "--drain", str(drain_s)]
        command += ["--trace-file", str(trace_file), "--responses-file", str(responses_file)]
        if traffic.arrivals:
            command += ["--arrivals", traffic.arrivals]
        if not traffic.request_start:
            command.append("--no-request-start")
        command += ["--start-offset", str(traffic.start_offset_s)]
        if traffic.token:
            command += ["--token", traffic.token]
        with open(output_file, "wb") as output:
            locust = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        try:
            client_cpu = _watch(locust, trace_file, traffic.duration_s, on_second)
        finally:
            locust.terminate()
            locust.wait()
        if locust.returncode or not trace_file.exists():
            raise DriverError("the Locust driver failed:\n" + output_file.read_text(errors="replace")[-3000:])
        rows, bodies = read_rows(trace_file), responses_file.read_bytes()
        rows = rows.sort_values("t_s", ignore_index=True)
        places = zip(rows.pop("offset"), rows.pop("length"), strict=True)
        return Drive(rows, [bodies[offset : offset + length] for offset, length in places], client_cpu)


def read_rows(file: Path) -> pd.DataFrame:
    """Read a trace: level as its name, queue_depth empty where the server did not say."""
    return pd.read_csv(
        file, dtype=ROWS, keep_default_na=False, na_values={"queue_depth": "", "level": "", "quality": ""}
    )


def _watch(
    locust: subprocess.Popen,
    trace_file: Path,
    duration_s: float,
    on_second: Callable[[float, list[dict[str, str]]], None],
) -> float:
    """Wait for the driver; return the share of one core that it took while it was sending."""
    process = psutil.Process(locust.pid)
    while locust.poll() is None and not newest_rows(trace_file):
        time.sleep(0.1)
    started, before_s, cpu_share = time.perf_counter(), _cpu_s(process), 0.0
    while locust.poll() is None:
        elapsed_s = time.perf_counter() - started
        if 0.5 < elapsed_s <= duration_s:
            cpu_share = (_cpu_s(process) - before_s) / elapsed_s
        on_second(elapsed_s, newest_rows(trace_file))
        with contextlib.suppress(subprocess.TimeoutExpired):
            locust.wait(1.0)
    return cpu_share


def _cpu_s(process: psutil.Process) -> float:
    with contextlib.suppress(psutil.NoSuchProcess):
        times = process.cpu_times()
        return times.user + times.system
    return 0.0


def newest_rows(trace_file: Path) -> list[dict[str, str]]:
    """Return the newest rows of a trace that is being written."""
    if not trace_file.exists():
        return []
    with open(trace_file, "rb") as file:  # bytes: the place to start at may lie inside a character
        columns = file.readline().decode().strip().split(",")
        file.seek(max(0, trace_file.stat().st_size - 4096))
        lines = [line.decode() for line in file.read().split(b"\n")[1:-1]]
    return [row for row in csv.DictReader(lines, columns) if row["length"]]
