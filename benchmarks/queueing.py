"""A discrete event simulation of the server's queue under the real policies, and a bound with hindsight.

What is simulated is TorchServe: requests wait in one queue, first come, first served, for W workers. A free worker
takes up to B requests; where its batch has room it waits for more, at most the batch delay, and no other worker takes
any meanwhile. The policy then sees the load and chooses the level. A batch holds its worker for its service time, drawn
from the latency table, and for the server's own overhead; its requests are answered together.

All times are in ms from the start. Nothing here reads a file or a clock: equal arguments give equal results.
"""

import heapq
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np

from elasticlm.model.structure import Choice, Level
from elasticlm.schedule.cascade import PairTable
from elasticlm.schedule.latency import Cell, LatencyTable
from elasticlm.schedule.load import Load
from elasticlm.schedule.policies import Policy, Table

SHARES = (0.0, 0.5, 0.95, 0.99, 1.0)  # at which a service time's quantile function is known; linear between them
NORMAL_P99 = 0.41  # (p99 - p95) / (p95 - p50) of a normal distribution, where a cell has no p99
ARRIVAL, FREE, DUE = range(3)  # kinds of events; at the same moment an arrival comes first


# -- The server --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Server:
    """How requests are put into batches, and what they are.

    Attributes:
        batch_size: requests that a batch holds at most (B).
        workers: workers that share the queue (W).
        max_batch_delay_ms: how long a batch with room waits for more, from its first request on.
        overhead_ms: the server's own time (r): it holds the worker once a batch, and is part of every latency.
        rows: sequences of a request (a rerank of 8 passages is 8).
        tokens: padded length; None takes the table's shortest.
    """

    batch_size: int = 1
    workers: int = 1
    max_batch_delay_ms: float = 1.0
    overhead_ms: float = 2.0
    rows: int = 1
    tokens: int | None = None

    def capacity_rps(self, table: Table, level: Choice) -> float:
        """Requests a second that the server answers at one level when its batches are full.

        >>> Server(overhead_ms=5).capacity_rps(LatencyTable.from_means({50: 45.0}), 50)
        20.0
        """
        batch_ms = table.mean_ms(level, self.rows * self.batch_size, self.tokens) + self.overhead_ms
        return 1000 * self.batch_size * self.workers / batch_ms


class ServiceTimes(LatencyTable):
    """A latency table that remembers what was looked up, and from which service times are drawn.

    A service time has the quantiles of the nearest cell, scaled so that its mean is the table's at (rows, tokens).
    Its quantile function is linear between p50, p95, p99; it begins as far below p50 as p95 lies above (at half of p50
    at least) and ends as far above p99 as p95 lies below. ``levels`` None keeps all of the table's.
    """

    def __init__(self, table: LatencyTable, levels: Sequence[Level] | None = None) -> None:
        super().__init__([c for c in table.cells if levels is None or c.level in levels], table.setup, table.notes)
        self._times: dict[tuple, float] = {}
        self._quantiles: dict[tuple, list[float]] = {}

    @property
    def most_rows(self) -> int:
        """Rows of the largest batch that was measured."""
        return self.rows[-1]

    def keeping(self, levels: Sequence[Level]) -> "ServiceTimes":
        """Return the table of these levels alone."""
        return ServiceTimes(self, levels)

    def mean_ms(self, level: Level, rows: float = 1, tokens: float | None = None) -> float:
        key = (level, rows, tokens)
        if key not in self._times:
            self._times[key] = super().mean_ms(level, rows, tokens)
        return self._times[key]

    def p95_ms(self, level: Level, rows: float = 1, tokens: float | None = None) -> float:
        key = ("p95", level, rows, tokens)
        if key not in self._times:
            self._times[key] = super().p95_ms(level, rows, tokens)
        return self._times[key]

    def draw_ms(self, level: Level, rows: int, tokens: int | None, share: float) -> float:
        """The service time in ms that a ``share`` in [0, 1) of all batches stays below."""
        return _at(share, self.quantiles_ms(level, rows, tokens))

    def quantiles_ms(self, level: Level, rows: int, tokens: int | None) -> list[float]:
        """Service times in ms at SHARES."""
        key = (level, rows, tokens)
        if key not in self._quantiles:
            length = self.tokens[0] if tokens is None else tokens
            cells = [cell for cell in self.cells if cell.level == level]
            nearest = min(cells, key=lambda cell: (abs(cell.rows - rows), abs(cell.tokens - length)))
            shape = _shape(nearest)
            mean = float(np.trapezoid(shape, SHARES))
            self._quantiles[key] = [ms * self.mean_ms(level, rows, tokens) / mean for ms in shape]
        return self._quantiles[key]


class PairTimes(PairTable):
    """The same of a pipeline: where its retriever is slow its reranker is too, both at the same share of their times.

    Its levels are those of ``table``, or of them the given ones. The depth of its lists counts as rows of the reranker.
    """

    def __init__(self, table: PairTable, levels: Sequence[Choice] | None = None) -> None:
        super().__init__(
            [table[level] for level in (table.levels if levels is None else levels)],
            ServiceTimes(table.retriever), ServiceTimes(table.reranker), passage_tokens=table.passage_tokens,
            max_tokens=table.max_tokens, search_ms=table.search_ms,
        )  # fmt: skip
        self._quantiles: dict[tuple, list[float]] = {}

    @property
    def tokens(self) -> tuple[int, ...]:
        """Lengths of queries that were measured."""
        return self.retriever.tokens

    @property
    def most_rows(self) -> int:
        """Queries of the largest batch whose lists were measured."""
        deepest = max(pair.depth for pair in self.pairs.values())
        return min(self.retriever.rows[-1], self.reranker.rows[-1] // deepest)

    def check_levels(self, levels: Sequence[Choice]) -> None:
        """Raise InputError unless every one of ``levels`` is among the pairs."""
        for level in levels:
            self[level]

    def keeping(self, levels: Sequence[Choice]) -> "PairTimes":
        """Return the table of these pairs alone."""
        return PairTimes(self, levels)

    def draw_ms(self, level: Choice, rows: int, tokens: int | None, share: float) -> float:
        """As ServiceTimes.draw_ms."""
        return _at(share, self.quantiles_ms(level, rows, tokens))

    def quantiles_ms(self, level: Choice, rows: int, tokens: int | None) -> list[float]:
        """As ServiceTimes.quantiles_ms: the stages' quantiles added up."""
        key = (level, rows, tokens)
        if key not in self._quantiles:
            added = self._time_ms(level, rows, tokens, lambda table, *asked: np.array(table.quantiles_ms(*asked)))
            self._quantiles[key] = added.tolist()
        return self._quantiles[key]


Times = ServiceTimes | PairTimes


def _at(share: float, quantiles_ms: Sequence[float]) -> float:
    """Return the quantile function's value between those at SHARES."""
    i = bisect_right(SHARES, share) - 1
    way = (share - SHARES[i]) / (SHARES[i + 1] - SHARES[i])
    return quantiles_ms[i] + way * (quantiles_ms[i + 1] - quantiles_ms[i])


def _shape(cell: Cell) -> list[float]:
    """Quantiles of a cell at SHARES, before the mean is made right; they never fall."""
    p50, p95 = cell.p50_ms, max(cell.p50_ms, cell.p95_ms)
    p99 = max(p95, cell.p99_ms or p95 + NORMAL_P99 * (p95 - p50))
    return [max(2 * p50 - p95, p50 / 2), p50, p95, p99, 2 * p99 - p95]


# -- Traffic -----------------------------------------------------------------------------------------------------------


class Traffic(Protocol):
    """Who sends when. Requests are numbered; request i's service time is drawn at ``shares[i]`` under every policy."""

    shares: np.ndarray

    def first_arrivals(self) -> list[tuple[float, int, int]]:
        """Return what arrives whatever the server does, as events (time in ms, ARRIVAL, request), ascending."""

    def next_arrival(self, request: int, answered_ms: float) -> tuple[float, int, int] | None:
        """Return the arrival that follows from an answer, if one does."""

    def users(self, arrival_ms: np.ndarray, answered_ms: np.ndarray) -> np.ndarray:
        """Return how many users there are at each arrival."""


@dataclass(frozen=True, kw_only=True)
class OpenLoop:
    """Requests at given times, however fast the server answers.

    Attributes:
        arrival_ms: [requests], ascending.
        seed: of the service times.
    """

    arrival_ms: np.ndarray
    seed: int = 0

    @cached_property
    def shares(self) -> np.ndarray:
        return np.random.default_rng(self.seed).random(len(self.arrival_ms))

    def first_arrivals(self) -> list[tuple[float, int, int]]:
        return [(time_ms, ARRIVAL, request) for request, time_ms in enumerate(self.arrival_ms.tolist())]

    def next_arrival(self, request: int, answered_ms: float) -> None:
        return None

    def users(self, arrival_ms: np.ndarray, answered_ms: np.ndarray) -> np.ndarray:
        """Requests in flight, the arriving one included."""
        return np.arange(1, len(arrival_ms) + 1) - np.searchsorted(np.sort(answered_ms), arrival_ms, side="right")


@dataclass(frozen=True, kw_only=True)
class ClosedLoop:
    """Users who send, wait for the answer, pause and send again: the paper's rush.

    They come one after another at equal distances over ``ramp_ms``. User u's i-th pause and service time are the same
    under every policy.

    Attributes:
        user_count: at the peak.
        duration_ms: nothing is sent from then on.
        ramp_ms: time in which users grow to their full number.
        pause_ms: shortest and longest pause, uniform between; the shortest is above 0.
        seed: of pauses and service times.
    """

    user_count: int
    duration_ms: float
    ramp_ms: float
    pause_ms: tuple[float, float] = (1000.0, 3000.0)
    seed: int = 0

    @cached_property
    def each(self) -> int:
        """Requests that a user could send at most: user u's are numbered from u * each."""
        return int(self.duration_ms / self.pause_ms[0]) + 1

    @cached_property
    def pauses(self) -> list[float]:
        """Pause in ms after each request."""
        random = np.random.default_rng([self.seed, 1])
        return random.uniform(*self.pause_ms, self.user_count * self.each).tolist()

    @cached_property
    def shares(self) -> np.ndarray:
        return np.random.default_rng(self.seed).random(self.user_count * self.each)

    @cached_property
    def start_ms(self) -> np.ndarray:
        """When each user comes."""
        return np.arange(self.user_count) * self.ramp_ms / self.user_count

    def first_arrivals(self) -> list[tuple[float, int, int]]:
        return [(time_ms, ARRIVAL, user * self.each) for user, time_ms in enumerate(self.start_ms.tolist())
                if time_ms < self.duration_ms]  # fmt: skip

    def next_arrival(self, request: int, answered_ms: float) -> tuple[float, int, int] | None:
        time_ms = answered_ms + self.pauses[request]
        return (time_ms, ARRIVAL, request + 1) if time_ms < self.duration_ms else None

    def users(self, arrival_ms: np.ndarray, answered_ms: np.ndarray) -> np.ndarray:
        return np.searchsorted(self.start_ms, arrival_ms, side="right")


# -- The simulation ----------------------------------------------------------------------------------------------------

Signal = Callable[[float, Sequence[float], int], tuple[int, tuple[float, ...]]]
"""What the worker knows: (now, the batch's arrival times, requests that wait) -> (queue depth, ages in ms)."""


def exact(now_ms: float, arrival_ms: Sequence[float], waiting: int) -> tuple[int, tuple[float, ...]]:
    """The true depth and the true ages; a poorer signal is another function of the same form."""
    return waiting, tuple([now_ms - came_ms for came_ms in arrival_ms])


SIGNALS: dict[str, Signal] = {"exact": exact}  # a new signal is a line here


@dataclass(frozen=True, kw_only=True)
class Served:
    """What became of the requests, in order of arrival; arrays [requests].

    Attributes:
        request: number in the traffic.
        arrival_ms, answered_ms: times from the start.
        queue_depth: requests behind the batch, as the signal told.
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
    told: Table | None = None,
) -> Served:
    """Serve the traffic under a policy until the last request is answered.

    ``told`` is the table that the policy decides by, where it is not the one that service times are drawn from.
    """
    told = told or table
    events = traffic.first_arrivals()  # a sorted list is a heap
    shares: list[float] = traffic.shares.tolist()
    arrival_ms = [0.0] * len(shares)
    served: list[tuple[int, float, float, int, int]] = []
    place = {level: i for i, level in enumerate(table.levels)}
    waiting: deque[int] = deque()
    forming: list[int] = []  # the batch with room, held by the one worker that collects
    number, idle = 0, server.workers

    def start(batch: list[int], now_ms: float) -> None:
        depth, ages_ms = signal(now_ms, [arrival_ms[request] for request in batch], len(waiting))
        rows = server.rows * len(batch)
        level = policy.choose(told, Load(
            queue_depth=depth, rows=rows, tokens=server.tokens, batch=len(batch), batch_size=server.batch_size,
            workers=server.workers, overhead_ms=server.overhead_ms,
            turnaround_ms=server.overhead_ms, ages_ms=ages_ms,
        ))  # fmt: skip
        service_ms = table.draw_ms(level, rows, server.tokens, shares[batch[0]])
        answered_ms = now_ms + service_ms + server.overhead_ms
        heapq.heappush(events, (answered_ms, FREE, 0))
        for request in batch:
            served.append((request, arrival_ms[request], answered_ms, depth, place[level]))
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
        while idle and waiting:  # nothing waits beside a batch with room
            forming = [waiting.popleft() for _ in range(min(server.batch_size, len(waiting)))]
            idle, number = idle - 1, number + 1
            if len(forming) == server.batch_size:
                start(forming, now_ms)
                forming = []
            else:
                heapq.heappush(events, (now_ms + server.max_batch_delay_ms, DUE, number))

    served.sort(key=lambda one: (one[1], one[0]))
    request, came, answered, depth, level = (np.array(column) for column in zip(*served, strict=True))
    return Served(request=request, arrival_ms=came, answered_ms=answered, queue_depth=depth, level=level)


# -- The bound ---------------------------------------------------------------------------------------------------------


def all_service_ms(table: Times, server: Server, traffic: OpenLoop) -> np.ndarray:
    """Return how long each request would hold the worker at each level, overhead included: [requests, levels]."""
    quantiles = [table.quantiles_ms(level, server.rows, server.tokens) for level in table.levels]
    return np.stack([np.interp(traffic.shares, SHARES, known) for known in quantiles], axis=1) + server.overhead_ms


def hindsight_bound(
    arrival_ms: np.ndarray,
    service_ms: np.ndarray,
    quality: Sequence[float],
    budget_ms: float,
    *,
    grid_ms: float = 1.0,
) -> float:
    """Return the most quality in time, a request, that any choice of levels reaches with B = W = 1.

    max over all choices of sum(quality x [latency <= T]) / requests, all arrivals and all service times known: a
    dynamic programme over the time at which the server is free. That time lies on a grid, rounded down, so that the
    result is an upper bound: it errs by what `grid_ms` a request gives away, and is exact where all is on the grid.

    Args:
        arrival_ms: [requests], ascending.
        service_ms: how long request i holds the server at each level, [requests, levels].
        quality: of each level, 0 or more, [levels].
        budget_ms: T.
    """
    arrival, service, budget = arrival_ms / grid_ms, service_ms / grid_ms, budget_ms / grid_ms + 1e-9
    first, best = 0, np.zeros(1)  # best[i]: most quality so far with the server free at first + i or sooner
    for at, holds in zip(arrival.tolist(), service.tolist(), strict=True):
        free = int(at) - first  # the last place of `best` at which the server is free when the request comes
        busy_from, busy = first + max(0, free + 1), best[max(0, free + 1) :]
        ends: list[tuple[int, np.ndarray]] = []  # (when the server is free again, quality so far from there on)
        for worth, hold in zip(quality, holds, strict=True):
            if free >= 0:
                end = int(at + hold)
                ends.append((end, best[min(free, len(best) - 1), None] + worth * (end - at <= budget)))
            if len(busy):
                end, gained = busy_from + int(hold), busy.copy()
                gained[: max(0, int(np.floor(at + budget)) + 1 - end)] += worth
                ends.append((end, gained))
        first = min(end for end, _ in ends)
        best = np.full(max(end + len(gained) for end, gained in ends) - first, -np.inf)
        for end, gained in ends:
            part = best[end - first : end - first + len(gained)]
            np.maximum(part, gained, out=part)
        np.maximum.accumulate(best, out=best)
        best = best[: np.searchsorted(best, best[-1]) + 1]  # free later for no more quality: never better
    return float(best[-1] / len(arrival))
