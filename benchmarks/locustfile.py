"""Drive an elastic server: users who pause (closed loop) or requests at given times (open loop).

By hand, with Locust's web page at http://localhost:8089 (one row per level):

    locust -f benchmarks/locustfile.py --host http://127.0.0.1:8080 --model mini --queries queries.txt

`elasticlm.benchmarks.simulate` runs the same file headless. Each request is one row in --trace-file. Response
bodies are appended to --responses-file; a row gives the offset and length of its body.
"""

import itertools
import math
import os
import sys
import time
from argparse import Namespace
from pathlib import Path
from typing import NamedTuple

import gevent
from gevent.pool import Group
from locust import FastHttpUser, events, task
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment
from locust.exception import StopTest, StopUser

sys.path.insert(0, str(Path(__file__).parents[1]))  # Locust runs this file, not the package

from elasticlm.benchmarks.arrivals import parse_arrivals
from elasticlm.benchmarks.replay import Replay, Request, read_requests, standard_library_requests

COLUMNS = "t_s,users,queue_depth,level,latency_ms,status,query_id,timing,offset,length"
GOLDEN_RATIO = 0.6180339887  # its multiples spread the users that Locust starts together over the second
OPEN_LOOP_S = 3600.0  # of arrivals where there is no --duration


def parse_pause(text: str) -> tuple[float, float]:
    """Return (shortest, longest) pause in seconds from "1,3" (or "2" for both)."""
    try:
        numbers = [float(number) for number in text.split(",")]
        shortest, longest = numbers * 2 if len(numbers) == 1 else numbers
    except ValueError:
        shortest = longest = -1.0
    if not 0 <= shortest <= longest:
        raise ValueError(f"pause {text!r}: expected seconds, SHORTEST,LONGEST such as 1,3")
    return shortest, longest


@events.init_command_line_parser.add_listener
def add_options(parser: LocustArgumentParser) -> None:
    parser.add_argument("--model", default="mini", help="name of the model that the server serves")
    parser.add_argument(
        "--queries", default="", help="file with a query a line (.txt), or .jsonl; empty: standard library docstrings"
    )
    parser.add_argument(
        "--k", type=int, default=0, help="ask for the K best passages of the archive's index; 0: vectors"
    )
    parser.add_argument("--pause", default="1,3", help="seconds between a user's requests, shortest,longest")
    parser.add_argument("--seed", type=int, default=0, help="seed of the queries, pauses and arrivals")
    parser.add_argument(
        "--arrivals", default="", help="open loop, with 1 user: trace:FILE.csv, poisson:RATE or gamma:RATE,CV"
    )
    parser.add_argument("--token", default="", is_secret=True, help="TorchServe's inference token, where it wants one")
    parser.add_argument(
        "--no-request-start", action="store_true", help="do not say in X-Request-Start when the request was sent"
    )
    parser.add_argument("--start-offset", type=float, default=0, help="seconds by which X-Request-Start is too early")
    parser.add_argument("--duration", type=float, default=0, help="seconds to send for, then end; 0: until stopped")
    parser.add_argument("--drain", type=float, default=10, help="seconds to wait for answers after --duration")
    parser.add_argument("--trace-file", default="", include_in_web_ui=False, help="CSV file: one row per request")
    parser.add_argument("--responses-file", default="", include_in_web_ui=False, help="bodies of the answers")


class Recorder:
    """Writes one row per request; the bodies of the answers go to a file of their own, unparsed."""

    def __init__(self, trace_file: str, responses_file: str) -> None:
        self.rows = open(trace_file or os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        self.bodies = open(responses_file or os.devnull, "wb")  # noqa: SIM115
        self.offset = 0
        self.in_flight = 0
        self.rows.write(COLUMNS + "\n")

    def write(self, request: Request, due_s: float, users: int, latency_ms: float, answer: "Answer") -> None:
        where = f"{self.offset},{len(answer.body)}"
        query_id = request.query_id.replace('"', '""')
        self.rows.write(f"{due_s:.4f},{users},{answer.queue_depth},{answer.level},{latency_ms:.3f},{answer.status},")
        self.rows.write(f'"{query_id}","{answer.timing}",{where}\n')
        self.offset += self.bodies.write(answer.body)


class Answer(NamedTuple):
    """What came back; status 0: nothing."""

    status: int = 0
    level: str = ""
    queue_depth: str = ""
    timing: str = ""
    body: bytes = b""


@events.init.add_listener
def check(environment: Environment, **_: object) -> None:
    """End at once, with one line, where an option or a file is wrong."""
    try:
        read_traffic(environment.parsed_options)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def read_traffic(options: Namespace) -> tuple[Replay, list[float] | None]:
    """Return what is sent, and for an open loop when."""
    requests = read_requests(Path(options.queries), options.k) if options.queries else None
    replay = Replay(requests or standard_library_requests(options.k), options.seed, parse_pause(options.pause))
    if not options.arrivals:
        return replay, None
    return replay, parse_arrivals(options.arrivals).times_s(options.duration or OPEN_LOOP_S, options.seed).tolist()


@events.test_start.add_listener
def start(environment: Environment, **_: object) -> None:
    options, user = environment.parsed_options, ElasticUser
    try:
        user.replay, user.arrival_times_s = read_traffic(options)
    except (OSError, ValueError) as error:  # the options may have been changed on the page since
        raise StopTest(str(error)) from None
    user.recorder = Recorder(options.trace_file, options.responses_file)
    user.numbers, user.duration_s = itertools.count(), options.duration or math.inf
    user.started, user.started_epoch = time.perf_counter(), time.time()
    gevent.spawn(end_after, environment, options.duration or math.inf, options.drain)


def end_after(environment: Environment, duration_s: float, drain_s: float) -> None:
    """Once nothing is sent any more, wait for the answers that are still out, then end the run."""
    recorder, elapsed_s = ElasticUser.recorder, ElasticUser.elapsed_s
    while elapsed_s() < duration_s or (recorder.in_flight and elapsed_s() < duration_s + drain_s):
        gevent.sleep(0.25)
        if recorder.rows.closed:  # stopped by hand
            return
        recorder.rows.flush()
    if environment.web_ui:
        environment.runner.stop()
    else:
        environment.runner.quit()


@events.test_stop.add_listener
def stop(environment: Environment, **_: object) -> None:
    if ElasticUser.recorder:
        ElasticUser.recorder.rows.close()
        ElasticUser.recorder.bodies.close()


class ElasticUser(FastHttpUser):
    """One user of the closed loop; in an open loop the one user sends everybody's requests."""

    concurrency = 100_000  # connections: the open loop must never wait for one
    network_timeout = connection_timeout = 600.0  # what is unanswered is decided by --stop-timeout
    replay: Replay
    recorder: Recorder | None = None
    numbers: itertools.count
    arrival_times_s: list[float] | None
    duration_s: float
    started: float
    started_epoch: float

    @classmethod
    def elapsed_s(cls) -> float:
        return time.perf_counter() - cls.started

    def on_start(self) -> None:
        options = self.environment.parsed_options
        number = next(self.numbers)
        if self.arrival_times_s is not None and number > 0:
            raise StopUser
        self.script = self.replay.user(number)
        self.path = f"/predictions/{options.model}"
        self.headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        if options.token:
            self.headers["Authorization"] = f"Bearer {options.token}"
        self.says_start, self.start_offset_s = not options.no_request_start, options.start_offset
        if self.arrival_times_s is None:
            gevent.sleep(number * GOLDEN_RATIO % 1)

    def wait_time(self) -> float:
        return self.pause_s

    @task
    def use(self) -> None:
        if self.arrival_times_s is not None:
            self.send_at_arrival_times()
            raise StopUser
        now_s = self.elapsed_s()
        if now_s >= self.duration_s:
            raise StopUser
        request, self.pause_s = next(self.script)
        self.send(request, now_s, self.environment.runner.user_count)

    def send_at_arrival_times(self) -> None:
        """Send each request at its time, whatever became of those before; wait for the last answers."""
        sent = Group()
        try:
            for due_s, (request, _) in zip(self.arrival_times_s, self.script, strict=False):
                gevent.sleep(max(0.0, due_s - self.elapsed_s()))
                sent.spawn(self.send, request, due_s, len(sent) + 1)
            sent.join()
        finally:
            sent.kill()

    def send(self, request: Request, due_s: float, users: int) -> None:
        """Send one request and record it; its latency counts from when it was due."""
        headers = self.headers
        if self.says_start:
            headers = headers | {"X-Request-Start": f"t={self.started_epoch + due_s - self.start_offset_s:.6f}"}
        answer = Answer()
        self.recorder.in_flight += 1
        try:
            with self.client.post(
                self.path, data=request.body.encode(), headers=headers, catch_response=True
            ) as response:
                said = response.headers or {}
                level, depth = said.get("X-Elastic-Level") or "", said.get("X-Elastic-Queue-Depth") or ""
                timing = said.get("Server-Timing") or ""
                answer = Answer(response.status_code, level, depth, timing, response.content or b"")
                if level:
                    response.request_meta["name"] = f"level {level}"  # one row per level on Locust's page
        finally:
            self.recorder.in_flight -= 1
            self.recorder.write(request, due_s, users, (self.elapsed_s() - due_s) * 1000, answer)
