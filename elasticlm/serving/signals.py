"""Estimate queue depth and request ages in a worker, for servers that do not report them to their workers.

Three signals are combined:

1. Batch fill, which costs nothing: if a batch arrives incomplete, no request is waiting behind it.
2. A probe, which asks the server how many requests are waiting (handlers.probe for TorchServe). It is called only when
   a full batch arrives. Its last answer is used for one second, and its answer may be to an earlier question.
3. Age: the current time minus the header X-Request-Start; without the header, an estimate from how many requests had
   arrived when (see `Arrivals`). The workers of a model share their counts (elasticlm.serving.shared_counts).

In addition, the time that the worker needs per batch beyond the latency table's is measured (see `Turnaround`).

This module does not depend on a server; clocks and the probe are passed as arguments.
"""

import math
import re
import statistics
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from elasticlm.schedule.peers import ArrivalRate
from elasticlm.serving.backlog import Backlog
from elasticlm.serving.shared_counts import Counts, OwnCount
from elasticlm.serving.telemetry import BatchReport

HOLD_S = 1.0
"""How long the probe's last answer is used, in s."""
OLDEST_S = 60.0
"""An X-Request-Start older than this is treated as an error and ignored."""
SKEW_S = 60.0
"""How long an age that an idle worker saw is used as the skew of the clocks, in s."""
IDLE_S = 0.005
"""If a worker waits this much longer than the batch delay, the queue was empty; the turnaround itself takes 1-2 ms."""


@dataclass(frozen=True)
class QueueStatus:
    """What the management API reports.

    Attributes:
        pending: waiting requests without the current batch.
        workers: workers that are ready.
        pids: process ids of all workers.
        capacity: requests that may wait; None if unknown.
        taken: requests that the workers had taken from the queue when it was asked.
    """

    pending: int
    workers: int
    pids: frozenset[int] = frozenset()
    capacity: int | None = None
    taken: int = 0


# -- 3. Age ------------------------------------------------------------------------------------------------------------


def header_age_ms(header: str, now_s: float) -> float | None:
    """Return the age in ms that X-Request-Start gives at `now_s` (seconds since 1970).

    The value may have the prefix `t=`; its unit (seconds, milliseconds or microseconds) is inferred from its magnitude.
    Returns None if the value is not a time, lies in the future, or is more than a minute old.

    >>> header_age_ms("t=1700000000.25", 1700000000.5), header_age_ms("1700000000250", 1700000000.5)
    (250.0, 250.0)
    """
    match = re.fullmatch(r"\s*(?:t=)?(\d{1,20}(?:\.\d{1,20})?)\s*", header)
    if match is None:
        return None
    started = float(match[1])
    unit = next((unit for unit in (1, 1e3, 1e6) if started < 1e11 * unit), math.inf)
    age_s = now_s - started / unit
    return age_s * 1e3 if 0 <= age_s <= OLDEST_S else None


class StartHeaders:
    """Reads ages from X-Request-Start, and corrects them for clocks that disagree.

    A request that finds an idle worker has just come, so that the age that its header states is the skew of the clocks
    (and the proxy's own time). The smallest such age of the last minute is subtracted. An age that is still larger than
    the estimate from counts by more than the latency budget is ignored.
    """

    def __init__(self) -> None:
        self._idle_ages: deque[tuple[float, float]] = deque()

    def ages_ms(
        self,
        headers: Sequence[str | None],
        estimated_ms: Sequence[float | None],
        now_s: float,
        *,
        was_idle: bool = False,
        budget_ms: float = math.inf,
    ) -> tuple[list[float | None], int]:
        """Return each request's age, from its header if valid and else as estimated, and the number of invalid headers.

        >>> StartHeaders().ages_ms(["t=100000000.5", None, "yesterday"], [1.0, 2.0, None], 100000001.0)
        ([500.0, 2.0, None], 1)
        """
        stated = [None if header is None else header_age_ms(header, now_s) for header in headers]
        if was_idle and (known := [age for age in stated if age is not None]):
            self._idle_ages.append((now_s, min(known)))
        while self._idle_ages and now_s - self._idle_ages[0][0] > SKEW_S:
            self._idle_ages.popleft()
        skew_ms = min((age for _, age in self._idle_ages), default=0.0)
        found: list[float | None] = []
        ignored = 0
        for header, age, estimate in zip(headers, stated, estimated_ms, strict=True):
            if age is not None:
                age = max(0.0, age - skew_ms)
            usable = age is not None and (estimate is None or age - estimate <= budget_ms)
            ignored += header is not None and not usable
            found.append(age if usable else estimate)
        return found, ignored


class Arrivals:
    """Estimates when requests arrived, from how many had arrived at a few points in time.

    Requests are numbered in order of arrival. If A requests had arrived by one point and number n > A by the next, n
    arrived between the two: the estimate is a quarter of the way, because an age that is too large costs quality, and
    one that is too small costs the deadline.
    """

    def __init__(self) -> None:
        self.arrived = 0
        """The number of requests known to have arrived."""
        self._estimates_s: deque[float] = deque()  # of the last requests up to number `arrived`
        self._seen_s: float | None = None

    def saw(self, now_s: float, arrived: int) -> None:
        """Record that at least `arrived` requests had arrived by `now_s`."""
        came = max(0, arrived - self.arrived)
        if self._seen_s is not None:
            now_s = max(now_s, self._seen_s)
            self._estimates_s.extend([self._seen_s + (now_s - self._seen_s) / 4] * came)
        self._seen_s = now_s
        self.arrived += came

    def forget(self) -> None:
        """Drop everything."""
        self.arrived, self._seen_s = 0, None
        self._estimates_s.clear()

    def ages_ms(self, first: int, last: int, now_s: float) -> tuple[float | None, ...]:
        """Return the ages of requests `first` to `last`; None if unknown. Those before `first` are dropped."""
        estimates_s = self._estimates_s
        while estimates_s and self.arrived - len(estimates_s) + 1 < first:
            estimates_s.popleft()
        unknown = min(self.arrived - len(estimates_s), last) - first + 1
        known = [(now_s - arrived_s) * 1e3 for arrived_s in estimates_s]
        ages = [*(None,) * unknown, *known][: last - first + 1]
        return (*ages, *(None,) * (last - first + 1 - len(ages)))


# -- What a batch costs beyond the model -------------------------------------------------------------------------------


class Turnaround:
    """A worker's time from one batch to the next beyond the service time in the latency table.

    The server, parsing, encoding, and searching where the table does not contain it take this time. Only batches with
    others waiting behind them count, because the worker is not idle between those. The value is the median of the last
    few batches, so that it follows the machine and ignores a single pause. Batches of which every request was refused
    are counted apart: they say what a refusal costs.
    """

    KEPT = 31

    def __init__(self) -> None:
        self._known_ms: deque[float] = deque(maxlen=self.KEPT)
        self._refusals_ms: deque[float] = deque(maxlen=self.KEPT)
        self._started_s: float | None = None
        self._table_ms, self._refused = 0.0, 0

    def batch_came(self, now_s: float, *, was_idle: bool, others_wait: bool) -> None:
        """Record the start of a batch; `others_wait` says that the next one is expected to follow without delay."""
        if self._started_s is not None and not was_idle:
            cycle_ms = (now_s - self._started_s) * 1e3
            if self._refused:
                self._refusals_ms.append(cycle_ms / self._refused)
            else:
                self._known_ms.append(max(0.0, cycle_ms - self._table_ms))
        self._started_s = now_s if others_wait else None

    def batch_done(self, report: BatchReport) -> None:
        """Record the end of a batch."""
        refused = report.errors.total() if not report.levels else 0
        self._table_ms, self._refused = report.table_ms, refused

    @property
    def ms(self) -> float:
        """The turnaround in ms; 0 before the first measurement."""
        return statistics.median(self._known_ms) if self._known_ms else 0.0

    @property
    def refusal_ms(self) -> float:
        """The worker's time for refusing one request; before the first measurement, the turnaround."""
        return statistics.median(self._refusals_ms) if self._refusals_ms else self.ms


# -- All of them -------------------------------------------------------------------------------------------------------


class QueueSignal:
    """A BacklogSource that combines batch fill, probe and arrivals.

    Args:
        probe: asks the management API about the queue, given how many requests the workers have taken; None if there is
            none.
        batch_size: B, the maximum batch size of the server.
        workers: W as configured; replaced by the probe's count once there is one.
        batch_delay_s: how long the server waits for a batch to fill.
        counts: the requests that the workers of the model have taken from the queue.
    """

    def __init__(
        self,
        probe: Callable[[int], QueueStatus | None] | None,
        *,
        batch_size: int,
        workers: int = 1,
        batch_delay_s: float = 0.0,
        counts: Counts | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._probe, self._clock = probe, clock
        self._batch_size, self._workers, self._batch_delay_s = batch_size, workers, batch_delay_s
        self._counts = counts or OwnCount()
        self._arrivals, self._rate = Arrivals(), ArrivalRate()
        self._turnaround = Turnaround()
        self._last: tuple[float, int] | None = None
        self._pids: frozenset[int] = frozenset()
        self._full_in_a_row = 0
        self._idle_since: float | None = None

    def batch_came(self, count: int) -> Backlog:
        """Return the backlog behind a batch of `count` requests that has just arrived."""
        now_s = self._clock()
        taken = self._counts.add(count)
        paused = self._idle_since is not None and now_s - self._idle_since > self._batch_delay_s + IDLE_S
        was_idle = paused and self._arrivals.arrived <= taken - count  # nobody was known to wait
        if was_idle:
            self._arrivals.saw(now_s - self._batch_delay_s, taken - count)
        full = count >= self._batch_size
        self._full_in_a_row = self._full_in_a_row + 1 if full and self._idle_since is not None and not was_idle else 0
        status = self._probe(taken) if self._probe and full else None
        pending = self._pending(status, full, now_s, taken, was_idle=was_idle)
        if paused and pending == 0 and self._arrivals.arrived > taken:
            self._arrivals.forget()  # what was admitted and is neither taken nor waiting has been lost
        if pending is not None:
            self._arrivals.saw(now_s, (status.taken if status else taken) + pending)
        depth = pending if pending is not None else self._assumed_depth(now_s)
        ages_ms = self._arrivals.ages_ms(taken - count + 1, taken + depth, now_s)
        if self._workers > 1 and not self._counts.shared:
            ages_ms = (None,) * count
        others_wait = full if pending is None else pending >= self._batch_size * self._workers
        self._turnaround.batch_came(now_s, was_idle=was_idle, others_wait=others_wait)
        return Backlog(
            queue_depth=depth,
            queue_full=bool(status and status.capacity and depth and depth + count >= status.capacity),
            workers=self._workers,
            ages_ms=ages_ms[:count],
            waiting_ages_ms=ages_ms[count:],
            turnaround_ms=self._turnaround.ms,
            refusal_ms=self._turnaround.refusal_ms,
            arrivals_rps=self._rate.saw(now_s, max(self._arrivals.arrived, taken)),
            was_idle=was_idle,
            probe_up=None if self._probe is None or not full else status is not None,
            took_ms=(self._clock() - now_s) * 1e3,
        )

    def batch_done(self, report: BatchReport) -> None:
        """Record the end of a batch; the worker waits from now on."""
        self._idle_since = self._clock()
        self._turnaround.batch_done(report)

    def _pending(
        self, status: QueueStatus | None, full: bool, now_s: float, taken: int, *, was_idle: bool
    ) -> int | None:
        """Return the number of waiting requests if it is known: from the probe, or 0 behind a batch with room."""
        if not full:
            self._last = None  # the queue is empty, so the last probe is out of date
            return 0
        if was_idle and (status is None or status.taken < taken):
            self._last = None  # so is an answer from before the worker was idle
            return None
        if status is None:
            return None
        if self._pids - status.pids:
            self._arrivals.forget()  # a worker has died with its requests, so that the counts have jumped
        self._workers, self._pids = status.workers, status.pids
        self._last, self._full_in_a_row = (now_s, status.pending), 0
        return status.pending

    def _assumed_depth(self, now_s: float) -> int:
        """Return the depth to plan with without a probe: it grows while full batches follow without a pause."""
        if self._last is not None and now_s - self._last[0] <= HOLD_S:
            return self._last[1]
        return self._batch_size * self._workers * self._full_in_a_row
