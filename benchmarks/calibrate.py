"""What the server can bear, measured through the server itself: how many users make a rush."""

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import requests

from elasticlm.benchmarks.drive import Traffic, drive
from elasticlm.benchmarks.pinning import pinned
from elasticlm.benchmarks.queue_simulation import QUEUE_FULL
from elasticlm.benchmarks.replay import Request
from elasticlm.benchmarks.served_archive import Archive
from elasticlm.benchmarks.server import ServerError
from elasticlm.benchmarks.servers import RunningServer
from elasticlm.command import say
from elasticlm.model.structure import Choice, level_name

RUSH = 3.0  # offered load of a rush, in capacities of the largest level
SMALLEST_BEARS = 0.8  # and at most this share of the capacity of the smallest
CALIBRATION_S, SETTLING_S = 12.0, 2.0
BURSTS, BURST = 6, 40  # bursts, one a second, and their requests
WARM_UP = 20  # requests before an arm, so that none pays for a cold server


def measure_capacity(
    archive: Archive,
    level: Choice,
    requests_file: Path,
    asked: Sequence[Request],
    traffic: Traffic,
    *,
    pin: bool = False,
) -> float:
    """Return how many requests per second the server answers at one level when there is always one more waiting."""
    name = level_name(level)
    say(f"calibration: how many requests per second level {name} answers")
    full = replace(traffic, users=2 * archive.workers * archive.batch_size + 2, spawn_rate=1000.0, pause_s=(0.0, 0.0),
                   arrivals=None, duration_s=CALIBRATION_S)  # fmt: skip
    with archive.serve(f"fixed:{name}", 1000.0, 1000) as server, pinned(server, archive.name, enabled=pin):
        warm_up(server, archive.name, asked)
        rows = drive(server.inference_url, archive.name, requests_file, full, drain_s=5).rows
    ended_s = rows["t_s"] + rows["latency_ms"] / 1000
    answered = (rows["status"] == 200) & (ended_s >= SETTLING_S) & (ended_s < CALIBRATION_S)
    capacity_rps = float(answered.sum() / (CALIBRATION_S - SETTLING_S))
    if not capacity_rps:
        raise ServerError(f"level {name} answered no request within {CALIBRATION_S:g} s")
    say(f"calibration: level {name} answers {capacity_rps:.1f} requests per second")
    return capacity_rps


def measure_ingress_ms(
    archive: Archive, requests_file: Path, asked: Sequence[Request], traffic: Traffic, *, pin: bool = False
) -> float:
    """Return how long the driver and the frontend need per request when many come at once, in ms.

    Bursts are sent to a queue for one request. Nearly all are refused by the frontend, one after another, so that the
    time from the first refusal to the last tells.
    """
    say("calibration: how long the frontend takes per request in a burst")
    starts_s = [SETTLING_S + number for number in range(BURSTS)]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "bursts.csv"
        file.write_text("t_s\n" + "".join(f"{start_s:.4f}\n" * BURST for start_s in starts_s))
        bursts = replace(traffic, users=1, spawn_rate=1.0, arrivals=f"trace:{file}", duration_s=starts_s[-1] + 1)
        largest = f"fixed:{level_name(archive.largest)}"
        handler = {"late": "answer"}
        with (
            archive.serve(largest, 1000.0, 1, handler=handler) as server,
            pinned(server, archive.name, enabled=pin),
        ):
            warm_up(server, archive.name, asked)
            rows = drive(server.inference_url, archive.name, requests_file, bursts, drain_s=5).rows
    refused = rows[rows["status"] == QUEUE_FULL]
    ended = (refused["t_s"] * 1000 + refused["latency_ms"]).groupby(refused["t_s"])
    per_request_ms = ((ended.max() - ended.min()) / (ended.count() - 1)).median()
    ingress_ms = round(float(per_request_ms), 3)
    say(f"calibration: {ingress_ms:g} ms per request")
    return ingress_ms


def rush_users(largest_rps: float, smallest_rps: float, pause_s: tuple[float, float]) -> int:
    """Return the users of a rush: too much for the largest level, bearable for the smallest.

    They offer (one request each mean pause) 3 times the capacity of the largest level, and at most 0.8 times that
    of the smallest.

    >>> rush_users(largest_rps=10, smallest_rps=100, pause_s=(1, 3)), rush_users(10, 30, (1, 3))
    (60, 48)
    """
    offered_rps = min(RUSH * largest_rps, SMALLEST_BEARS * smallest_rps)
    return max(1, int(offered_rps * sum(pause_s) / 2))


def warm_up(server: RunningServer, name: str, asked: Sequence[Request]) -> None:
    """Send some requests one by one; raises ServerError unless they are answered as they should be."""
    with requests.Session() as session:
        for request in asked[:WARM_UP]:
            url = f"{server.inference_url}/predictions/{name}"
            reply = session.post(
                url,
                data=request.body.encode(),
                headers={"Content-Type": "application/json"} | server.headers(),
                timeout=60,
            )
            if reply.status_code != 200 or "X-Elastic-Level" not in reply.headers:
                raise ServerError(
                    f"the server answered {reply.status_code} to {request.body[:200]}: {reply.text[:500]}"
                )
