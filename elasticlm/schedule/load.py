"""The input of a policy besides the latency table: the current batch, and the queue behind it."""

import math
from dataclasses import dataclass

from elasticlm.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Load:
    """What is known when a batch arrives. Raises InputError for impossible values.

    Attributes:
        queue_depth: requests waiting behind the batch (g).
        rows: sequences in the batch (a rerank of 8 passages is 8).
        tokens: padded length of the batch; None means the shortest length of the table.
        batch: requests in the batch (b).
        batch_size: maximum number of requests that the server puts into one batch (B).
        workers: workers that share the queue (W).
        overhead_ms: time that the server adds per request (r).
        turnaround_ms: time that a worker needs from one batch to the next beyond the service time in the latency
            table: the server, parsing, encoding, and searching where the table does not contain it; 0 if unknown.
        ages_ms: how long each request has waited already; empty if unknown.
        budgets_ms: the budget T_i of each request, in the order of ``ages_ms``; empty if the requests have none.
    """

    queue_depth: int = 0
    rows: int = 1
    tokens: int | None = None
    batch: int = 1
    batch_size: int = 1
    workers: int = 1
    overhead_ms: float = 0.0
    turnaround_ms: float = 0.0
    ages_ms: tuple[float, ...] = ()
    budgets_ms: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        for name in ("rows", "batch", "batch_size", "workers"):
            if not getattr(self, name) >= 1:
                raise InputError(f"load: {name} is {getattr(self, name)}, expected 1 or more")
        if self.tokens is not None and not self.tokens >= 1:
            raise InputError(f"load: tokens is {self.tokens}, expected 1 or more")
        for name in ("queue_depth", "overhead_ms", "turnaround_ms"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"load: {name} is {getattr(self, name)}, expected 0 or more")
        if self.budgets_ms and len(self.budgets_ms) != len(self.ages_ms):
            raise InputError(f"load: {len(self.budgets_ms)} budgets_ms for {len(self.ages_ms)} ages_ms")
        if not all(0 <= age < math.inf for age in self.ages_ms):
            raise InputError("load: ages_ms: expected times of 0 ms or more")
        if not all(budget > 0 for budget in self.budgets_ms):
            raise InputError("load: budgets_ms: expected times above 0 ms")
