"""What is known about the requests behind a batch. A server's adapter supplies it through a BacklogSource."""

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, kw_only=True)
class Backlog:
    """What is known about the queue when a batch arrives.

    Attributes:
        queue_depth: g, requests waiting behind the batch.
        workers: W, workers that share the queue.
        ages_ms: how long each request of the batch has waited, in its order; 0 if unknown. Empty if none is known.
        turnaround_ms: a worker's time from one batch to the next beyond the service time that the latency table
            contains (see elasticlm.schedule.load); 0 if unknown.
        took_ms: the time that it took to find all of this out.
    """

    queue_depth: int = 0
    workers: int = 1
    ages_ms: tuple[float, ...] = ()
    turnaround_ms: float = 0.0
    took_ms: float = 0.0


class BacklogSource(Protocol):
    """Watches the queue of one worker: elasticlm.serving.signals for servers that do not show it to their workers."""

    def batch_came(self, count: int) -> Backlog:
        """Return the backlog behind a batch of ``count`` requests that has just arrived."""

    def batch_done(self, table_ms: float) -> None:
        """Record the end of the batch, of which ``table_ms`` is the part that the latency table contains."""
