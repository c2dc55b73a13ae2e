"""A discrete event simulation of the server's queue under the real policies.

What is simulated is TorchServe: its frontend puts one request after another into a queue, where they wait, first come,
first served, for W workers. A free worker takes up to B requests; if its batch has room, it waits for more, at most the
batch delay, and no other worker takes any meanwhile. The policy then sees the load and chooses the level. A batch holds
its worker for its service time, drawn from the latency table, and for the turnaround; its requests are answered
together, after the service time and the server's own overhead. The policy gets the same turnaround and overhead, as
on the server. Requests that cannot be answered in time are refused as on the server: by the worker, which is busy with
that for a moment, or because the queue is full.

All times are in ms from the start. Nothing here reads a file or a clock: equal arguments give equal results.
"""

import heapq
import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from elasticlm.benchmarks.queue_server import Server
from elasticlm.benchmarks.queue_traffic import ARRIVAL, DUE, FREE, QUEUED, Traffic
from elasticlm.benchmarks.service_times import Times
from elasticlm.model.structure import Choice
from elasticlm.schedule.load import Load
from elasticlm.schedule.peers import ArrivalRate
from elasticlm.schedule.policies import Policy, decide
from elasticlm.schedule.table import Table

Ages = tuple[float | None, ...]
Signal = Callable[[float, Sequence[float], Sequence[float]], tuple[int, Ages, Ages]]
"""What the worker knows: (now, arrival times of the batch, of those that wait) -> (queue depth, ages of both)."""

ANSWERED, QUEUE_FULL, LATE = 200, 503, 504


def exact(now_ms: float, arrival_ms: Sequence[float], waiting_ms: Sequence[float]) -> tuple[int, Ages, Ages]:
    """The true depth and the true ages; a less exact signal is another function of the same form."""
    return (
        len(waiting_ms),
        tuple([now_ms - came_ms for came_ms in arrival_ms]),
        tuple([now_ms - came_ms for came_ms in waiting_ms]),
    )


@dataclass(frozen=True, kw_only=True)
class SimulatedRequests:
    """What became of the requests, in order of arrival; arrays [requests].

    Attributes:
        request: number in the traffic.
        arrival_ms, answered_ms: times from the start; a refusal is an answer too.
        queue_depth: requests behind the batch, as the signal gave it.
        level: position of the level in the table's ``levels``.
        status: 200, 503 (the queue was full) or 504 (it could not be answered in time).
    """

    request: np.ndarray
    arrival_ms: np.ndarray
    answered_ms: np.ndarray
    queue_depth: np.ndarray
    level: np.ndarray
    status: np.ndarray

    @property
    def latency_ms(self) -> np.ndarray:
        return self.answered_ms - self.arrival_ms

    def in_time(self, budget_ms: float) -> np.ndarray:
        """Whether each was answered within the budget."""
        return (self.status == ANSWERED) & (self.latency_ms <= budget_ms)


def simulate(
    policy: Policy,
    table: Times,
    server: Server,
    traffic: Traffic,
    signal: Signal = exact,
    *,
    decided_by: Table | None = None,
    late: str = "shed",
) -> SimulatedRequests:
    """Serve the traffic under a policy until the last request is answered.

    Args:
        decided_by: the table that the policy decides by, where it is not the one that service times are drawn from.
        late: what a policy with a budget does with requests that cannot be answered in time, see
            elasticlm.schedule.triage.LATE.
    """
    budget_ms = policy.budget_ms or math.inf
    known = decided_by or table
    events = traffic.first_arrivals()  # a sorted list is a heap
    shares: list[float] = traffic.shares.tolist()
    arrival_ms = [0.0] * len(shares)
    answered_requests: list[tuple[int, float, float, int, int, int]] = []
    place = {level: i for i, level in enumerate(table.levels)}
    waiting: deque[int] = deque()
    forming: list[int] = []  # the batch with room, held by the one worker that collects
    number, idle = 0, server.workers
    frontend_free_ms = 0.0
    arrived, rate = 0, ArrivalRate()
    last_level: Choice | None = None

    def finish(request: int, answered_ms: float, depth: int, level: int, status: int) -> None:
        answered_requests.append((request, arrival_ms[request], answered_ms, depth, level, status))
        if following := traffic.next_arrival(request, answered_ms):
            heapq.heappush(events, following)

    def start(batch: list[int], now_ms: float) -> None:
        nonlocal last_level
        arrived_ms, waiting_ms = ([arrival_ms[request] for request in part] for part in (batch, waiting))
        depth, ages_ms, waiting_ages_ms = signal(now_ms, arrived_ms, waiting_ms)
        decision = decide(policy, known, Load(
            queue_depth=depth, queue_full=0 < len(waiting) >= (server.queue_size or math.inf) - len(batch),
            rows=server.rows * len(batch), tokens=server.tokens, batch=len(batch),
            batch_size=server.batch_size, workers=server.workers, overhead_ms=server.overhead_ms,
            turnaround_ms=server.turnaround_ms, budget_ms=budget_ms,
            refusal_ms=server.refusal_ms + server.turnaround_ms / server.batch_size,
            ages_ms=ages_ms, waiting_ages_ms=waiting_ages_ms,
            arrivals_rps=rate.saw(now_ms / 1e3, arrived), last_level=last_level,
        ), late)  # fmt: skip
        last_level = decision.level
        kept = [request for i, request in enumerate(batch) if i not in decision.refused]
        busy_ms, level = server.refusal_ms * len(decision.refused), place[decision.level]
        for i in decision.refused:
            finish(batch[i], now_ms + busy_ms + server.overhead_ms, depth, level, LATE)
        if kept:
            busy_ms += table.draw_ms(decision.level, server.rows * len(kept), server.tokens, shares[kept[0]])
            for request in kept:
                finish(request, now_ms + busy_ms + server.overhead_ms, depth, level, ANSWERED)
        heapq.heappush(events, (now_ms + busy_ms + server.turnaround_ms, FREE, 0))

    while events:
        now_ms, kind, which = heapq.heappop(events)
        if kind == ARRIVAL:
            arrival_ms[which] = now_ms
            frontend_free_ms = max(now_ms, frontend_free_ms) + server.ingress_ms
            heapq.heappush(events, (frontend_free_ms, QUEUED, which))
        elif kind == QUEUED:
            arrived += 1
            if not forming and not idle and server.queue_size is not None and len(waiting) >= server.queue_size:
                finish(which, now_ms + server.overhead_ms, len(waiting), len(place) - 1, QUEUE_FULL)
            else:
                (forming or waiting).append(which)
        elif kind == FREE:
            idle += 1
        elif which != number:
            continue  # that batch filled up and left before it was due
        if forming and (kind == DUE or len(forming) == server.batch_size):
            start(forming, now_ms)
            forming = []
        while idle and waiting:  # nothing waits while a batch has room
            forming = [waiting.popleft() for _ in range(min(server.batch_size, len(waiting)))]
            idle, number = idle - 1, number + 1
            if len(forming) == server.batch_size:
                start(forming, now_ms)
                forming = []
            else:
                heapq.heappush(events, (now_ms + server.max_batch_delay_ms, DUE, number))

    answered_requests.sort(key=lambda row: (row[1], row[0]))
    request, came, answered, depth, level, status = (
        np.array(column) for column in zip(*answered_requests, strict=True)
    )
    return SimulatedRequests(
        request=request, arrival_ms=came, answered_ms=answered, queue_depth=depth, level=level, status=status
    )
