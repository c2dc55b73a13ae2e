"""How long the queue is and how old its requests are, for servers that do not tell a worker.

Three signals are combined:

1. Batch fill, which costs nothing: if a batch arrives with room in it, nothing waits behind it.
2. A probe, which asks the server how many requests wait (handlers.probe for TorchServe). It is called only when a batch
   arrives full; its last answer is used for one second.
3. Age: the clock minus the header X-Request-Start; without the header, from the probes (see `Arrivals`).

In addition, what a batch costs the worker beyond the model is measured as it runs (see `Turnaround`).

Nothing here knows a server; clocks and the probe are arguments.
"""

import math
import re
import statistics
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

HOLD_S = 1.0
"""How long the probe's last answer is used, in s."""
OLDEST_S = 60.0
"""X-Request-Start before that is a mistake, not a wait."""
IDLE_S = 0.005
"""A worker that waited so long beyond the batch delay had an empty queue; the turnaround itself takes 1-2 ms."""


@dataclass(frozen=True)
class QueueStatus:
    """What the management API tells: requests that wait (the batch in hand left out), and workers that are ready."""

    pending: int
    workers: int


# -- 3. Age ------------------------------------------------------------------------------------------------------------


def header_age_ms(header: str, now_s: float) -> float | None:
    """Return the age that X-Request-Start tells at `now_s` (seconds since 1970), in ms.

    `t=` may stand before it; seconds, milliseconds and microseconds are told apart by magnitude. None where it is no
    time, in the future, or older than a minute.

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
    """Return each request's age, from its X-Request-Start where that tells one, else as sampled; and how many did not.

    >>> known_ages_ms(["t=100000000.5", None, "yesterday"], [1.0, 2.0, 3.0], 100000001.0)
    ([500.0, 2.0, 3.0], 1)
    """
    stated = [None if header is None else header_age_ms(header, now_s) for header in headers]
    ages_ms = [sample if age is None else age for age, sample in zip(stated, sampled_ms, strict=True)]
    ignored = sum(header is not None and age is None for header, age in zip(headers, stated, strict=True))
    return ages_ms, ignored


class Arrivals:
    """Bounds on when requests arrived, from how many had arrived at a few points in time.

    For one worker and a queue that is first come, first served: request number n arrived after the last point at
    which fewer than n had. Ages are pessimistic by at most the time between two points.
    """

    def __init__(self) -> None:
        self._points: deque[tuple[float, int]] = deque()

    def saw(self, now_s: float, arrived: int) -> None:
        """Note that `arrived` requests had come by `now_s`."""
        self._points.append((now_s, arrived))

    def forget(self) -> None:
        self._points.clear()

    def age_ms(self, number: int, now_s: float) -> float:
        """Return the age of request `number` (from 1, in order of arrival); numbers never fall from call to call.

        0 where nothing is known, and where the newest point is no longer fresh.
        """
        while len(self._points) > 1 and self._points[1][1] < number:
            self._points.popleft()
        if not self._points or self._points[0][1] >= number or now_s - self._points[-1][0] > HOLD_S:
            return 0.0
        return max(0.0, now_s - self._points[0][0]) * 1e3


# -- What a batch costs beyond the model -------------------------------------------------------------------------------


class Turnaround:
    """A worker's time from one batch to the next, less the model's: TorchServe, parsing, tokenising, JSON.

    Only batches behind which others waited count: between them the worker is never idle. The median of the last few
    follows the machine and shrugs off a pause.
    """

    KEPT = 31

    def __init__(self) -> None:
        self._known_ms: deque[float] = deque(maxlen=self.KEPT)
        self._started_s: float | None = None
        self._forward_ms = 0.0

    def batch_came(self, now_s: float, others_wait: bool) -> None:
        """Note a batch; `others_wait` where the next one will be handed over without delay."""
        if self._started_s is not None:
            self._known_ms.append(max(0.0, (now_s - self._started_s) * 1e3 - self._forward_ms))
        self._started_s = now_s if others_wait else None

    def batch_done(self, forward_ms: float) -> None:
        self._forward_ms = forward_ms

    @property
    def ms(self) -> float:
        """0 where nothing is known yet."""
        return statistics.median(self._known_ms) if self._known_ms else 0.0


# -- All of them -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Backlog:
    """What is known when a batch is handed over.

    Args:
        queue_depth: g, requests behind the batch in hand.
        workers: W, workers that share the queue.
        ages_ms: age of each request in the batch so far as probes tell; 0 where nothing is known.
        turnaround_ms: the worker's time from one batch to the next, less the model's; 0 where nothing is known.
    """

    queue_depth: int
    workers: int
    ages_ms: tuple[float, ...]
    turnaround_ms: float = 0.0


class QueueSignal:
    """Batch fill, probe and arrivals as one answer per batch.

    Args:
        probe: asks the management API; None where it may not be asked.
        batch_size: B, the largest batch that TorchServe hands over.
        workers: W as configured; the probe's count takes its place.
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
        """Return the backlog behind a batch of `count` requests that was handed over now."""
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
        return Backlog(self._depth(count, now_s), self._workers, ages_ms, self._turnaround.ms)

    def batch_done(self, forward_ms: float) -> None:
        """Note that the answers go out, `forward_ms` of it the model's time: from now on the worker waits."""
        self._idle_since = self._clock()
        self._turnaround.batch_done(forward_ms)

    def _pending(self, count: int, now_s: float) -> int | None:
        if count < self._batch_size:
            self._last = None  # nothing waits now: a full batch after this is news
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
