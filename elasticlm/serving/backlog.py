"""What is known about the requests behind a batch. A server's adapter supplies it through a BacklogSource."""

from dataclasses import dataclass
from typing import Protocol

from elasticlm.serving.telemetry import BatchReport


@dataclass(frozen=True, kw_only=True)
class Backlog:
    """What is known about the queue when a batch arrives.

    Attributes:
        queue_depth: g, requests waiting behind the batch.
        queue_full: whether the queue was full when the batch was taken, so that requests have been refused.
        workers: W, workers that share the queue.
        ages_ms: how long each request of the batch has waited, in its order; None if unknown. Empty if none is known.
        waiting_ages_ms: the same for the requests behind the batch, in order of arrival; the last may be missing.
        waiting_rows: sequences of a waiting request, in the mean; None if unknown.
        refused_rows: sequences of each request that was refused since the last batch because the queue was full.
        turnaround_ms: a worker's time from one batch to the next beyond the service time that the latency table
            contains (see elasticlm.schedule.load); 0 if unknown.
        refusal_ms: a worker's time for refusing one request.
        arrivals_rps: requests that arrived per second in the last seconds.
        was_idle: whether the worker has waited for this batch, so that its requests have just come.
        probe_up: whether the server answered when it was asked about its queue; None if it was not asked.
        took_ms: the time that it took to find all of this out.
    """

    queue_depth: int = 0
    queue_full: bool = False
    workers: int = 1
    ages_ms: tuple[float | None, ...] = ()
    waiting_ages_ms: tuple[float | None, ...] = ()
    waiting_rows: float | None = None
    refused_rows: tuple[int, ...] = ()
    turnaround_ms: float = 0.0
    refusal_ms: float = 0.0
    arrivals_rps: float = 0.0
    was_idle: bool = False
    probe_up: bool | None = None
    took_ms: float = 0.0


class BacklogSource(Protocol):
    """Watches the queue of one worker: elasticlm.serving.signals for servers that do not show it to their workers."""

    def batch_came(self, count: int) -> Backlog:
        """Return the backlog behind a batch of ``count`` requests that has just arrived."""

    def batch_done(self, report: BatchReport) -> None:
        """Record the end of the batch."""
