"""The input of a policy besides the latency table: the current batch, and the queue behind it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from elasticlm.errors import InputError
from elasticlm.model.structure import Choice


@dataclass(frozen=True, kw_only=True)
class Load:
    """What is known when a batch arrives. Raises InputError for impossible values.

    Attributes:
        queue_depth: requests waiting behind the batch (g).
        queue_full: whether the queue was full when the batch was taken, so that requests have been refused.
        rows: sequences in the batch (a rerank of 8 passages is 8).
        tokens: padded length of the batch; None means the shortest length of the table.
        waiting_rows, waiting_tokens: the same for one request behind the batch, as a mean over recent ones; None: as
            those in the batch.
        batch: requests in the batch (b).
        batch_size: maximum number of requests that the server puts into one batch (B).
        workers: workers that share the queue (W).
        overhead_ms: time that the server adds per request (r).
        turnaround_ms: time that a worker needs from one batch to the next beyond the service time in the latency
            table: the server, parsing, encoding, and searching where the table does not contain it; 0 if unknown.
        refusal_ms: time that a worker needs for refusing one request (c).
        table_ratio: measured service times relative to those of the latency table.
        arrivals_rps: requests that arrived per second in the last seconds; only the policies of peers use it.
        last_level: the level of the batch before; only the policies of peers use it.
        budget_ms: T, the latency budget; infinite if there is none.
        ages_ms: how long each request of the batch has waited already, None if unknown; empty if none is known.
        budgets_ms: the budget of each request of the batch, in the order of ``ages_ms``; empty if they have none of
            their own.
        counted_ages_ms: the same as ages_ms, as far as they are known without the requests' own headers. If this is
            given, what the requests state of themselves does not change the level of a batch of several. None: it does.
        waiting_ages_ms: the same as ages_ms for the requests behind the batch, in order of arrival; those at the end
            may be missing.
    """

    queue_depth: int = 0
    queue_full: bool = False
    rows: int = 1
    tokens: int | None = None
    waiting_rows: float | None = None
    waiting_tokens: float | None = None
    batch: int = 1
    batch_size: int = 1
    workers: int = 1
    overhead_ms: float = 0.0
    turnaround_ms: float = 0.0
    refusal_ms: float = 0.0
    table_ratio: float = 1.0
    arrivals_rps: float = 0.0
    last_level: Choice | None = None
    budget_ms: float = math.inf
    ages_ms: tuple[float | None, ...] = ()
    budgets_ms: tuple[float, ...] = ()
    counted_ages_ms: tuple[float | None, ...] | None = None
    waiting_ages_ms: tuple[float | None, ...] = ()

    def __post_init__(self) -> None:
        for name in ("rows", "batch", "batch_size", "workers"):
            if not getattr(self, name) >= 1:
                raise InputError(f"load: {name} is {getattr(self, name)}, expected 1 or more")
        for name in ("tokens", "waiting_rows", "waiting_tokens"):
            if getattr(self, name) is not None and not getattr(self, name) >= 1:
                raise InputError(f"load: {name} is {getattr(self, name)}, expected 1 or more")
        for name in ("queue_depth", "overhead_ms", "turnaround_ms", "refusal_ms", "arrivals_rps"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"load: {name} is {getattr(self, name)}, expected 0 or more")
        for name in ("ages_ms", "budgets_ms", "counted_ages_ms"):
            if len(getattr(self, name) or ()) not in (0, self.batch):
                raise InputError(f"load: {len(getattr(self, name))} {name} for a batch of {self.batch}")
        if not 0 < self.table_ratio < math.inf:
            raise InputError(f"load: table_ratio is {self.table_ratio}, expected a number above 0")
        if not self.budget_ms > 0:
            raise InputError(f"load: budget_ms is {self.budget_ms}, expected a time above 0 ms")
        for name in ("ages_ms", "waiting_ages_ms", "counted_ages_ms"):
            known = [age for age in getattr(self, name) or () if age is not None]
            if known and not (min(known) >= 0 and sum(known) < math.inf):  # NaN is not below
                raise InputError(f"load: {name}: expected times of 0 ms or more")
        if not all(budget > 0 for budget in self.budgets_ms):
            raise InputError("load: budgets_ms: expected times above 0 ms")

    @property
    def full_batch(self) -> tuple[float, float | None]:
        """(rows, tokens) of a full batch of requests such as those that wait."""
        rows = self.rows / self.batch if self.waiting_rows is None else self.waiting_rows
        return rows * self.batch_size, self.tokens if self.waiting_tokens is None else self.waiting_tokens

    def left_ms(self, budget_ms: float) -> list[float]:
        """Return the time that each request of the batch has left for its service; an unknown age counts as 0."""
        budgets_ms = self.budgets_ms or (budget_ms,) * len(self.ages_ms)
        return [min(budget_ms, budget) - (age or 0.0) - self.overhead_ms
                for budget, age in zip(budgets_ms, self.ages_ms or (None,) * len(budgets_ms), strict=True)]  # fmt: skip

    def of_requests(self, positions: Sequence[int]) -> "Load":
        """Return the load of a batch of the requests at these positions only, one or more, with their share of rows."""

        def of(values: tuple) -> tuple:
            return tuple(values[i] for i in positions) if values else ()

        count = len(positions)
        if count == self.batch:
            return self
        rows = max(1, round(self.rows * count / self.batch))
        counted = None if self.counted_ages_ms is None else of(self.counted_ages_ms)
        return replace(
            self, batch=count, rows=rows, ages_ms=of(self.ages_ms), budgets_ms=of(self.budgets_ms),
            counted_ages_ms=counted,
        )  # fmt: skip

    def for_level(self) -> "Load":
        """Return the load for which the level is chosen.

        A request that is alone in its batch may ask for a smaller level. Where several share a batch, and what they
        state of themselves is not trusted, it is the load without their own ages and budgets.
        """
        if self.counted_ages_ms is None or self.batch == 1:
            return self
        return replace(self, ages_ms=self.counted_ages_ms, budgets_ms=(), counted_ages_ms=None)
