"""The load that a policy decides by: the batch in hand, and what waits behind it."""

import math
from dataclasses import dataclass

from elasticlm.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Load:
    """What is known when a batch is in hand. Raises InputError on values that no server can see.

    Attributes:
        queue_depth: requests waiting behind the batch (g).
        rows: sequences in the batch (a rerank of 8 passages is 8).
        tokens: padded length of the batch; None takes the table's shortest.
        batch: requests in the batch (b).
        batch_size: requests that the server puts into one batch at most (B).
        workers: workers that share the queue (W).
        overhead_ms: the server's own time per request (r).
        turnaround_ms: what a worker needs from one batch to the next beyond its service time; 0 where unknown.
        ages_ms: how long each request has waited already; empty where unknown.
        budgets_ms: each request's own budget T_i, in the order of ``ages_ms``; empty where they have none.
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
