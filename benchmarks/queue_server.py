"""The server as the queue simulation sees it: how requests are put into batches, and what they are."""

from dataclasses import dataclass

from elasticlm.model.structure import Choice
from elasticlm.schedule.admission import capacity_rps
from elasticlm.schedule.latency import LatencyTable  # noqa: F401  (for the example)
from elasticlm.schedule.table import Table


@dataclass(frozen=True, kw_only=True)
class Server:
    """How requests are put into batches, and what they are.

    Attributes:
        batch_size: requests that a batch holds at most (B).
        workers: workers that share the queue (W).
        max_batch_delay_ms: how long a batch with room waits for more, from its first request on.
        overhead_ms: time that the server adds to the latency of a request (r), without holding the worker.
        turnaround_ms: time from one batch of a worker to the next beyond the service time, as elasticlm.schedule.load
            defines it. It holds the worker after every batch.
        refusal_ms: how long a worker needs for refusing one request. If it refuses a whole batch, that takes the
            turnaround as well.
        ingress_ms: how long the frontend needs to put one request into the queue, one after another, so that the last
            of a burst gets there late.
        queue_size: requests that may wait; more are refused by the server itself, which costs the workers nothing.
            None: any number.
        rows: sequences of a request (a rerank of 8 passages is 8).
        tokens: padded length; None takes the table's shortest.
    """

    batch_size: int = 1
    workers: int = 1
    max_batch_delay_ms: float = 1.0
    overhead_ms: float = 5.0
    turnaround_ms: float = 2.0
    refusal_ms: float = 0.5
    ingress_ms: float = 0.0
    queue_size: int | None = None
    rows: int = 1
    tokens: int | None = None

    def capacity_rps(self, table: Table, level: Choice) -> float:
        """Requests per second that the server answers at one level when its batches are full.

        >>> Server(turnaround_ms=5).capacity_rps(LatencyTable.from_means({50: 45.0}), 50)
        20.0
        """
        return capacity_rps(table, level, batch_rows=self.rows * self.batch_size, tokens=self.tokens,
                            batch_size=self.batch_size, workers=self.workers,
                            turnaround_ms=self.turnaround_ms)  # fmt: skip
