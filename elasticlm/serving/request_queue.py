"""A queue in the server's own process, in front of the serving core: it knows every age and the depth exactly.

For servers that hand each request to the Python process as it arrives, such as Ray Serve or any ASGI server. Requests
wait here, and nowhere else; one thread takes up to ``batch_size`` of them at a time, without waiting for more.
"""

import json
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING

from elasticlm.schedule.peers import ArrivalRate
from elasticlm.serving.backlog import Backlog
from elasticlm.serving.requests import INTERNAL, JSON, UNAVAILABLE, RequestError
from elasticlm.serving.signals import Turnaround
from elasticlm.serving.telemetry import BatchReport
from elasticlm.serving.wire import RawRequest, Response

if TYPE_CHECKING:
    from elasticlm.serving.core import ServingCore

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Waiting:
    """A request in the queue.

    Attributes:
        rows: its sequences, as far as the server knows; 1 otherwise.
        came_s: when it came, by the queue's clock.
    """

    request: RawRequest
    rows: int
    came_s: float
    response: "Future[Response]" = field(default_factory=Future)


class RequestQueue:
    """Answers requests in order of arrival, in one thread.

    Args:
        core: answers batches.
        bound: number of requests that may wait; a request beyond it gets the status 503 at once.
        publish: called in the queue's thread with the report of each batch; what it raises is logged.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        core: "ServingCore",
        *,
        bound: int,
        publish: Callable[[BatchReport], None] = lambda report: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._core, self.bound, self._publish, self._clock = core, bound, publish, clock
        self._waiting: deque[Waiting] = deque()
        self._refused_rows: list[int] = []
        self._changed = threading.Condition()
        self._arrived, self._closed = 0, False
        self._rate, self._turnaround = ArrivalRate(), Turnaround()
        self._started_s: float | None = None
        self._publish_failed = False
        self._thread = threading.Thread(target=self._run, name="elasticlm-queue", daemon=True)
        self._thread.start()

    def submit(self, request: RawRequest, rows: int = 1) -> "Future[Response]":
        """Return the future response to a request. It can be cancelled while it waits.

        Args:
            rows: sequences of the request, for a better estimate of what waits.
        """
        waiting = Waiting(request, rows, self._clock())
        with self._changed:
            if len(self._waiting) >= self.bound or self._closed:
                self._refused_rows.append(rows)
                waiting.response.set_result(_closed() if self._closed else _full(self.bound))
            else:
                self._arrived += 1
                self._waiting.append(waiting)
                self._changed.notify()
        return waiting.response

    def busy_s(self) -> float:
        """Return for how long the current batch has been answered; 0 if there is none."""
        started_s = self._started_s
        return 0.0 if started_s is None else self._clock() - started_s

    def is_alive(self) -> bool:
        """Return whether the queue's thread runs."""
        return self._thread.is_alive()

    def close(self) -> None:
        """Answer what waits, and stop. Requests that come later are refused."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                was_idle = not self._waiting
                while not self._waiting and not self._closed:
                    self._changed.wait()
                batch = self._take()
                if not batch and self._closed and not self._waiting:
                    return
            if batch:
                self._answer(batch, was_idle)

    def _take(self) -> list[Waiting]:
        """Remove a batch from the queue, without requests whose clients have gone. The lock is held."""
        batch: list[Waiting] = []
        while self._waiting and len(batch) < self._core.batch_size:
            waiting = self._waiting.popleft()
            if waiting.response.set_running_or_notify_cancel():
                batch.append(waiting)
        return batch

    def _answer(self, batch: list[Waiting], was_idle: bool) -> None:
        now_s = self._started_s = self._clock()
        with self._changed:
            behind = [waiting for waiting in self._waiting if not waiting.response.cancelled()]
            refused, self._refused_rows = tuple(self._refused_rows), []
            arrived = self._arrived
        self._turnaround.batch_came(now_s, was_idle=was_idle, others_wait=bool(behind))
        backlog = Backlog(
            queue_depth=len(behind),
            queue_full=bool(refused),
            ages_ms=tuple((now_s - waiting.came_s) * 1e3 for waiting in batch),
            waiting_ages_ms=tuple((now_s - waiting.came_s) * 1e3 for waiting in behind),
            waiting_rows=sum(waiting.rows for waiting in behind) / len(behind) if behind else None,
            refused_rows=refused,
            turnaround_ms=self._turnaround.ms,
            refusal_ms=self._turnaround.refusal_ms,
            arrivals_rps=self._rate.saw(now_s, arrived),
            was_idle=was_idle,
        )
        try:
            responses, report = self._core.handle([waiting.request for waiting in batch], backlog, time.time())
        except Exception:  # a defect of the core itself; the thread has to survive it
            logger.exception("a batch of %d failed", len(batch))
            responses, report = [_failed()] * len(batch), None
        for waiting, response in zip(batch, responses, strict=True):
            waiting.response.set_result(response)
        if report is not None:
            self._turnaround.batch_done(report)
            try:
                self._publish(report)
            except Exception:  # metrics that cannot be published cost no answer
                if not self._publish_failed:  # said once: it may be so for every batch
                    logger.exception("the metrics of a batch could not be published")
                self._publish_failed = True
        self._started_s = None


def count_rows(body: bytes) -> int:
    """Return the number of sequences of a request in our wire format; 1 if the body cannot be read.

    >>> count_rows(b'{"query": "ice", "passages": ["a", "b"]}'), count_rows(b'{"text": "a"}'), count_rows(b"[")
    (2, 1, 1)
    """
    if b'"texts"' not in body and b'"passages"' not in body:
        return 1
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return 1
    lists = [value.get(name) for name in ("texts", "passages")] if isinstance(value, Mapping) else []
    return max([1, *(len(each) for each in lists if isinstance(each, list))])


def error_response(error: RequestError) -> Response:
    """Return the response to a request that the core has not seen."""
    return Response(HTTPStatus(error.status), {"Content-Type": JSON}, json.dumps(error.answer()).encode())


def _full(bound: int) -> Response:
    message = f"{bound} requests are waiting already, as many as can be answered in time; try again later"
    return error_response(RequestError("queue_full", message, UNAVAILABLE))


def _closed() -> Response:
    return error_response(RequestError("stopping", "the server is shutting down; try again", UNAVAILABLE))


def _failed() -> Response:
    message = "answering a batch failed; the server's log has the reason"
    return error_response(RequestError("internal", message, INTERNAL))
