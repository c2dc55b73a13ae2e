"""A discrete event simulation of the server's queue under the real policies.

What is simulated is TorchServe: requests wait in one queue, first come, first served, for W workers. A free worker
takes up to B requests; where its batch has room it waits for more, at most the batch delay, and no other worker takes
any meanwhile. The policy then sees the load and chooses the level. A batch holds its worker for its service time, drawn
from the latency table, and for the turnaround; its requests are answered together, after the service time and the
server's own overhead. The policy is told the same turnaround and overhead, as on the server.

All times are in ms from the start. Nothing here reads a file or a clock: equal arguments give equal results.
"""

import heapq
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from elasticlm.benchmarks.queue_server import Server
from elasticlm.benchmarks.queue_traffic import ARRIVAL, DUE, FREE, Traffic
from elasticlm.benchmarks.service_times import Times
from elasticlm.schedule.load import Load
from elasticlm.schedule.policies import Policy, Table

Signal = Callable[[float, Sequence[float], int], tuple[int, tuple[float, ...]]]
"""What the worker knows: (now, the batch's arrival times, requests that wait) -> (queue depth, ages in ms)."""


def exact(now_ms: float, arrival_ms: Sequence[float], waiting: int) -> tuple[int, tuple[float, ...]]:
    """The true depth and the true ages; a less exact signal is another function of the same form."""
    return waiting, tuple([now_ms - came_ms for came_ms in arrival_ms])


@dataclass(frozen=True, kw_only=True)
class SimulatedRequests:
    """What became of the requests, in order of arrival; arrays [requests].

    Attributes:
        request: number in the traffic.
        arrival_ms, answered_ms: times from the start.
        queue_depth: requests behind the batch, as the signal gave it.
        level: place of the level in the table's ``levels``.
    """

    request: np.ndarray
    arrival_ms: np.ndarray
    answered_ms: np.ndarray
    queue_depth: np.ndarray
    level: np.ndarray

    @property
    def latency_ms(self) -> np.ndarray:
        return self.answered_ms - self.arrival_ms

    def in_time(self, budget_ms: float) -> np.ndarray:
        """Whether each was answered within the budget."""
        return self.latency_ms <= budget_ms


def simulate(
    policy: Policy,
    table: Times,
    server: Server,
    traffic: Traffic,
    signal: Signal = exact,
    *,
    decided_by: Table | None = None,
) -> SimulatedRequests:
    """Serve the traffic under a policy until the last request is answered.

    ``decided_by`` is the table that the policy decides by, where it is not the one that service times are drawn from.
    """
    known = decided_by or table
    events = traffic.first_arrivals()  # a sorted list is a heap
    shares: list[float] = traffic.shares.tolist()
    arrival_ms = [0.0] * len(shares)
    answered_requests: list[tuple[int, float, float, int, int]] = []
    place = {level: i for i, level in enumerate(table.levels)}
    waiting: deque[int] = deque()
    forming: list[int] = []  # the batch with room, held by the one worker that collects
    number, idle = 0, server.workers

    def start(batch: list[int], now_ms: float) -> None:
        depth, ages_ms = signal(now_ms, [arrival_ms[request] for request in batch], len(waiting))
        rows = server.rows * len(batch)
        level = policy.choose(known, Load(
            queue_depth=depth, rows=rows, tokens=server.tokens, batch=len(batch), batch_size=server.batch_size,
            workers=server.workers, overhead_ms=server.overhead_ms,
            turnaround_ms=server.turnaround_ms, ages_ms=ages_ms,
        ))  # fmt: skip
        service_ms = table.draw_ms(level, rows, server.tokens, shares[batch[0]])
        answered_ms = now_ms + service_ms + server.overhead_ms
        heapq.heappush(events, (now_ms + service_ms + server.turnaround_ms, FREE, 0))
        for request in batch:
            answered_requests.append((request, arrival_ms[request], answered_ms, depth, place[level]))
            if following := traffic.next_arrival(request, answered_ms):
                heapq.heappush(events, following)

    while events:
        now_ms, kind, which = heapq.heappop(events)
        if kind == ARRIVAL:
            arrival_ms[which] = now_ms
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
    request, came, answered, depth, level = (np.array(column) for column in zip(*answered_requests, strict=True))
    return SimulatedRequests(request=request, arrival_ms=came, answered_ms=answered, queue_depth=depth, level=level)
