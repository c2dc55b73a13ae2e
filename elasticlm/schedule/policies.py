"""The elastic schedule (ElasticLM, section 4.3): pure policies from (table, load) to a level.

Behind a queue of g requests level k answers the last one after about (g + 1) t_k. Each policy is a frozen value with
``choose(table, load)``; it is written ``fixed:50``, ``queue:t=250``, ``slack:t=250,alpha=0.6`` everywhere. A pipeline's
levels are pairs (see elasticlm.schedule.cascade), ``fixed:50+10``.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar, cast

from elasticlm.errors import InputError
from elasticlm.hints import near_match
from elasticlm.model.structure import Choice, level_name, parse_choice
from elasticlm.schedule.load import Load

ChoiceT = TypeVar("ChoiceT")
ALPHA = 0.6  # share of the budget that `slack` plans with; `elasticlm policies` recommends one


class Table(Protocol[ChoiceT]):
    """What a policy asks: the levels, best first, and what each takes. A LatencyTable, or of a pipeline a PairTable."""

    @property
    def levels(self) -> tuple[ChoiceT, ...]: ...

    def mean_ms(self, level: ChoiceT, rows: float = ..., tokens: float | None = ...) -> float: ...

    def p95_ms(self, level: ChoiceT, rows: float = ..., tokens: float | None = ...) -> float: ...


class Policy(Protocol):
    """A level for each batch; decided from the batch's load alone, without memory.

    Attributes:
        budget_ms: T, the latency budget that the policy plans with; None where it plans with none.
    """

    @property
    def budget_ms(self) -> float | None: ...

    def choose(self, table: Table[ChoiceT], load: Load) -> ChoiceT: ...

    def check(self, levels: Sequence[Choice]) -> None:
        """Raise InputError unless the policy can choose among these levels."""

    def settings(self) -> dict[str, str | float]:
        """The policy as settings of an archive: ``policy``, and its numbers under the settings' own names."""


@dataclass(frozen=True)
class Fixed:
    """Always the same level: what a static model does."""

    level: Choice

    @property
    def budget_ms(self) -> None:
        return None

    def choose(self, table: Table[ChoiceT], load: Load) -> ChoiceT:
        return cast(ChoiceT, self.level)  # see check()

    def check(self, levels: Sequence[Choice]) -> None:
        if self.level not in levels:
            offered = ", ".join(map(level_name, levels))
            raise InputError(f"policy {self}: level {level_name(self.level)} is not among the levels {offered}")

    def settings(self) -> dict[str, str | float]:
        return {"policy": str(self)}

    def __str__(self) -> str:
        return f"fixed:{level_name(self.level)}"


@dataclass(frozen=True)
class Queue:
    """The paper's law: the largest level that answers the last request in the queue within the budget.

    >>> from elasticlm.schedule.latency import LatencyTable
    >>> table = LatencyTable.from_means({50: 40.0, 10: 8.0})
    >>> [Queue(budget_ms=250).choose(table, Load(queue_depth=g)) for g in (0, 5, 6, 100)]
    [50, 50, 10, 10]
    """

    budget_ms: float

    def choose(self, table: Table[ChoiceT], load: Load) -> ChoiceT:
        return largest_within(table, load, self.budget_ms)

    def check(self, levels: Sequence[Choice]) -> None:
        """Any levels will do."""

    def settings(self) -> dict[str, str | float]:
        return {"policy": "queue", "latency_budget_ms": self.budget_ms}

    def __str__(self) -> str:
        return f"queue:t={self.budget_ms:g}"


@dataclass(frozen=True)
class Slack:
    """The default: the law with a share ``alpha`` of the budget, and no request in the batch made late.

    The law alone steers the last request in the queue to finish at the budget, so that under a lasting rush the whole
    queue lives on the edge; and it leaves out that every waiting batch costs the worker its turnaround too. Requests
    that even the smallest level would answer late are beyond saving and do not count.
    """

    budget_ms: float
    alpha: float = ALPHA

    def choose(self, table: Table[ChoiceT], load: Load) -> ChoiceT:
        budgets = load.budgets_ms or (self.budget_ms,) * len(load.ages_ms)
        spare = [min(self.budget_ms, own) - age - load.overhead_ms
                 for own, age in zip(budgets, load.ages_ms, strict=True)]  # fmt: skip
        fastest = table.p95_ms(table.levels[-1], load.rows, load.tokens)
        tightest = min((ms for ms in spare if ms >= fastest), default=math.inf)
        limit_ms = self.alpha * self.budget_ms
        return largest_within(table, load, limit_ms, tightest_ms=tightest, turnaround_ms=load.turnaround_ms)

    def check(self, levels: Sequence[Choice]) -> None:
        """Any levels will do."""

    def settings(self) -> dict[str, str | float]:
        return {"policy": "slack", "latency_budget_ms": self.budget_ms, "alpha": self.alpha}

    def __str__(self) -> str:
        alpha = f"{self.alpha:g}".removeprefix("0")
        return f"slack:t={self.budget_ms:g},alpha={alpha}"


def largest_within(
    table: Table[ChoiceT], load: Load, limit_ms: float, *, tightest_ms: float = math.inf, turnaround_ms: float = 0.0
) -> ChoiceT:
    """Return the largest level for which the last request in the queue, and the batch in hand, are in time.

        t_k(rows, tokens) + ceil(g / (B W)) (t_k(rows B / b, tokens) + turnaround) + r <= limit
        and  t_k^p95(rows, tokens) <= tightest

    With B = W = b = 1 and r = turnaround = 0 this is the paper's (g + 1) t_k <= T. Where no level fits, the smallest: a
    late answer beats none.
    """
    rounds = math.ceil(load.queue_depth / (load.batch_size * load.workers))
    full_rows = load.rows * load.batch_size / load.batch
    for level in table.levels[:-1]:
        in_hand = table.mean_ms(level, load.rows, load.tokens)
        behind = rounds * (table.mean_ms(level, full_rows, load.tokens) + turnaround_ms)
        in_time = table.p95_ms(level, load.rows, load.tokens) <= tightest_ms
        if in_time and in_hand + behind + load.overhead_ms <= limit_ms:
            return level
    return table.levels[-1]


POLICIES: dict[str, type[Policy]] = {"fixed": Fixed, "queue": Queue, "slack": Slack}
OPTIONS = {"fixed": (), "queue": ("t",), "slack": ("t", "alpha")}


def parse_policy(text: str, *, default_budget_ms: float | None = None, default_alpha: float = ALPHA) -> Policy:
    """Return the policy written ``fixed:50``, ``queue:t=250`` or ``slack:t=250,alpha=0.6``.

    A policy without its own t (alpha) takes the default. Raises InputError with the near match on unknown words.
    """
    name, _, arguments = text.strip().partition(":")
    if name not in POLICIES:
        expected = "expected fixed:LEVEL, queue:t=MS or slack:t=MS,alpha=SHARE"
        raise InputError(f"policy {text!r}: {expected}{near_match(name, POLICIES)}")
    if name == "fixed":
        return Fixed(parse_choice(arguments))
    options = dict(part.partition("=")[::2] for part in arguments.split(",") if part)
    if unknown := [key for key in options if key not in OPTIONS[name]]:
        raise InputError(f"policy {text!r}: unknown option {unknown[0]!r}, expected {', '.join(OPTIONS[name])}")
    try:
        budget_ms = float(options.get("t", default_budget_ms or "nan"))
        alpha = float(options.get("alpha", default_alpha))
    except ValueError:
        raise InputError(f"policy {text!r}: t and alpha are numbers, such as t=250,alpha=0.6") from None
    if not 0 < budget_ms < math.inf:
        raise InputError(f"policy {text!r}: needs a budget above 0 in ms, such as {name}:t=250")
    if not 0 < alpha <= 1:
        raise InputError(f"policy {text!r}: alpha is a share of the budget above 0 and at most 1")
    return Queue(budget_ms) if name == "queue" else Slack(budget_ms, alpha)
