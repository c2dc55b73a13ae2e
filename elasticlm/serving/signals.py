"""Estimate queue depth and request ages in a worker, for servers that do not report them to their workers.

Three signals are combined:

1. Batch fill, which costs nothing: if a batch arrives incomplete, no request is waiting behind it.
2. A probe, which asks the server how many requests are waiting (handlers.probe for TorchServe). It is called only when
   a full batch arrives; its last answer is used for one second.
3. Age: the current time minus the header X-Request-Start; without the header, an estimate from the probes (see
   `Arrivals`).

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

from elasticlm.serving.backlog import Backlog

HOLD_S = 1.0
"""How long the probe's last answer is used, in s."""
OLDEST_S = 60.0
"""An X-Request-Start older than this is treated as an error and ignored."""
IDLE_S = 0.005
"""If a worker waits this much longer than the batch delay, the queue was empty; the turnaround itself takes 1-2 ms."""


@dataclass(frozen=True)
class QueueStatus:
    """What the management API reports: waiting requests, without the current batch, and workers that are ready."""

    pending: int
    workers: int


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


def known_ages_ms(headers: Sequence[str | None], sampled_ms: Sequence[float], now_s: float) -> tuple[list[float], int]:
    """Return each request's age, from X-Request-Start if valid and else as sampled, and the number of invalid headers.

    >>> known_ages_ms(["t=100000000.5", None, "yesterday"], [1.0, 2.0, 3.0], 100000001.0)
    ([500.0, 2.0, 3.0], 1)
    """
    stated = [None if header is None else header_age_ms(header, now_s) for header in headers]
    ages_ms = [sample if age is None else age for age, sample in zip(stated, sampled_ms, strict=True)]
    ignored = sum(header is not None and age is None for header, age in zip(headers, stated, strict=True))
    return ages_ms, ignored


class Arrivals:
    """Bounds on the arrival times of requests, from the number of arrivals at a few points in time.

    Valid for one worker and a first-come, first-served queue: request number n arrived after the last point at which
    fewer than n requests had arrived. Ages are overestimated by at most the time between two points.
    """

    def __init__(self) -> None:
        self._points: deque[tuple[float, int]] = deque()

    def saw(self, now_s: float, arrived: int) -> None:
        """Record that `arrived` requests had arrived by `now_s`."""
        self._points.append((now_s, arrived))

    def forget(self) -> None:
        self._points.clear()

    def age_ms(self, number: int, now_s: float) -> float:
        """Return the age of request `number`, counted from 1 in order of arrival; calls must use ascending numbers.

        Returns 0 if nothing is known or the newest point is older than `HOLD_S`.
        """
        while len(self._points) > 1 and self._points[1][1] < number:
            self._points.popleft()
        if not self._points or self._points[0][1] >= number or now_s - self._points[-1][0] > HOLD_S:
            return 0.0
        return max(0.0, now_s - self._points[0][0]) * 1e3


# -- What a batch costs beyond the model -------------------------------------------------------------------------------


class Turnaround:
    """A worker's time from one batch to the next beyond the service time in the latency table.

    The server, parsing, encoding, and searching where the table does not contain it take this time. Only batches with
    others waiting behind them count, because the worker is not idle between those. The value is the median of the last
    few batches, so that it follows the machine and ignores a single pause.
    """

    KEPT = 31

    def __init__(self) -> None:
        self._known_ms: deque[float] = deque(maxlen=self.KEPT)
        self._started_s: float | None = None
        self._table_ms = 0.0

    def batch_came(self, now_s: float, others_wait: bool) -> None:
        """Record the start of a batch; `others_wait` says that the next batch will follow without delay."""
        if self._started_s is not None:
            self._known_ms.append(max(0.0, (now_s - self._started_s) * 1e3 - self._table_ms))
        self._started_s = now_s if others_wait else None

    def batch_done(self, table_ms: float) -> None:
        """Record the end of a batch, of which `table_ms` is the part that the latency table contains."""
        self._table_ms = table_ms

    @property
    def ms(self) -> float:
        """The turnaround in ms; 0 before the first measurement."""
        return statistics.median(self._known_ms) if self._known_ms else 0.0


# -- All of them -------------------------------------------------------------------------------------------------------


class QueueSignal:
    """A BacklogSource that combines batch fill, probe and arrivals.

    Args:
        probe: reads the queue from the management API; None if there is none.
        batch_size: B, the maximum batch size of TorchServe.
        workers: W as configured; replaced by the probe's count once there is one.
        batch_delay_s: how long TorchServe waits for a batch to fill.
    """

    def __init__(
        self,
        probe: Callable[[], QueueStatus | None] | None,
        *,
        batch_size: int,
        workers: int = 1,
        batch_delay_s: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._probe, self._clock = probe, clock
        self._batch_size, self._workers, self._batch_delay_s = batch_size, workers, batch_delay_s
        self._last: tuple[float, int] | None = None
        self._arrivals = Arrivals()
        self._turnaround = Turnaround()
        self._handed_over = 0
        self._idle_since: float | None = None

    def batch_came(self, count: int) -> Backlog:
        """Return the backlog behind a batch of `count` requests that has just arrived."""
        now_s = self._clock()
        if self._idle_since is not None and now_s - self._idle_since > self._batch_delay_s + IDLE_S:
            self._arrivals.saw(now_s - self._batch_delay_s, self._handed_over)
        first = self._handed_over + 1
        self._handed_over += count
        pending = self._pending(count, now_s)
        if pending is not None:
            self._arrivals.saw(now_s, self._handed_over + pending)
        if self._workers > 1:
            self._arrivals.forget()
        ages_ms = tuple(self._arrivals.age_ms(number, now_s) for number in range(first, first + count))
        self._turnaround.batch_came(now_s, (pending or 0) >= self._batch_size * self._workers)
        return Backlog(
            queue_depth=self._depth(count, now_s),
            workers=self._workers,
            ages_ms=ages_ms,
            turnaround_ms=self._turnaround.ms,
            took_ms=(self._clock() - now_s) * 1e3,
        )

    def batch_done(self, table_ms: float) -> None:
        """Record the end of a batch; the worker waits from now on."""
        self._idle_since = self._clock()
        self._turnaround.batch_done(table_ms)

    def _pending(self, count: int, now_s: float) -> int | None:
        if count < self._batch_size:
            self._last = None  # the queue is empty, so the last probe is out of date
            return 0
        status = self._probe() if self._probe else None
        if status is None:
            return None
        self._workers = status.workers
        self._last = (now_s, status.pending)
        return status.pending

    def _depth(self, count: int, now_s: float) -> int:
        if count < self._batch_size:
            return 0
        if self._last is not None and now_s - self._last[0] <= HOLD_S:
            return self._last[1]
        return self._batch_size * self._workers
