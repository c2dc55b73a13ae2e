"""The elastic schedule (ElasticLM, section 4.3): policies that choose a level from a latency table and the load.

With g requests in the queue, level k answers the last one after about (g + 1) t_k. Each policy is a frozen value;
``decide`` is the one function that servers and the simulator call. Policies are written ``deadline:t=250``,
``slack:t=250,alpha=0.6``, ``queue:t=250`` or ``fixed:50``. Levels of a two-stage pipeline are pairs (see
elasticlm.schedule.cascade): ``fixed:50+10``. Policies of other systems are in elasticlm.schedule.peers.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Generic, Protocol, cast

from elasticlm.errors import InputError
from elasticlm.hints import near_match
from elasticlm.model.structure import Choice, level_name, parse_choice
from elasticlm.schedule.correction import ScaledTable
from elasticlm.schedule.load import Load
from elasticlm.schedule.peers import PEERS
from elasticlm.schedule.table import ChoiceT, Table
from elasticlm.schedule.triage import Triage, triage

ALPHA = 0.6  # share of the budget that `slack` plans with; `elasticlm policies` recommends a value


@dataclass(frozen=True)
class Decision(Generic[ChoiceT]):
    """What becomes of a batch.

    Attributes:
        level: the level that answers it.
        refused: positions in the batch of the requests that are refused because they cannot be answered in time.
    """

    level: ChoiceT
    refused: tuple[int, ...] = ()


def decide(policy: "Policy", table: Table[ChoiceT], load: Load, late: str = "shed") -> Decision[ChoiceT]:
    """Return the level of a batch and the requests in it that are refused.

    Args:
        load: the batch and the queue behind it.
        late: what to do with requests that cannot be answered in time, see elasticlm.schedule.triage.LATE.

    >>> from elasticlm.schedule.latency import LatencyTable
    >>> table = LatencyTable.from_means({50: 40.0, 10: 8.0})
    >>> decide(Deadline(250), table, Load(ages_ms=(190.0,)))
    Decision(level=10, refused=())
    >>> decide(Deadline(250), table, Load(ages_ms=(300.0,), queue_depth=1, waiting_ages_ms=(0.0,)))
    Decision(level=10, refused=(0,))
    """
    smallest = policy.smallest(table.levels)
    table = table if load.table_ratio == 1 else ScaledTable(table, load.table_ratio)
    load = replace(load, budget_ms=min(load.budget_ms, policy.budget_ms or math.inf))
    found = triage(table, smallest, load, late)
    if len(found.refused) == load.batch:
        return Decision(smallest, found.refused)
    kept = [i for i in range(load.batch) if i not in found.refused]
    level = policy.choose(table, load.of_requests(kept) if found.refused else load, found)
    return Decision(level, found.refused)


class Policy(Protocol):
    """Chooses a level for each batch from the load of that batch, without any state.

    Attributes:
        budget_ms: T, the latency budget that the policy plans with; None if it has no budget.
    """

    @property
    def budget_ms(self) -> float | None: ...

    def choose(self, table: Table[ChoiceT], load: Load, found: Triage) -> ChoiceT:
        """Return the level of a batch; ``load`` is without the requests that are refused."""

    def check(self, levels: Sequence[Choice]) -> None:
        """Raise InputError unless the policy can choose among these levels."""

    def smallest(self, levels: Sequence[ChoiceT]) -> ChoiceT:
        """Return the smallest of these levels (largest first) that the policy can choose."""

    def settings(self) -> dict[str, str | float]:
        """Return the policy as settings of an archive: ``policy``, and its parameters by the names of the settings."""


@dataclass(frozen=True)
class Fixed:
    """Always chooses the same level, like a static model."""

    level: Choice

    @property
    def budget_ms(self) -> None:
        return None

    def choose(self, table: Table[ChoiceT], load: Load, found: Triage | None = None) -> ChoiceT:
        return cast(ChoiceT, self.level)  # see check()

    def check(self, levels: Sequence[Choice]) -> None:
        if self.level not in levels:
            offered = ", ".join(map(level_name, levels))
            raise InputError(f"policy {self}: level {level_name(self.level)} is not among the levels {offered}")

    def smallest(self, levels: Sequence[ChoiceT]) -> ChoiceT:
        return cast(ChoiceT, self.level)

    def settings(self) -> dict[str, str | float]:
        return {"policy": str(self)}

    def __str__(self) -> str:
        return f"fixed:{level_name(self.level)}"


@dataclass(frozen=True)
class Queue:
    """The rule of the paper: the largest level that answers the last request in the queue within the budget.

    >>> from elasticlm.schedule.latency import LatencyTable
    >>> table = LatencyTable.from_means({50: 40.0, 10: 8.0})
    >>> [Queue(budget_ms=250).choose(table, Load(queue_depth=g)) for g in (0, 5, 6, 100)]
    [50, 50, 10, 10]
    """

    budget_ms: float

    def choose(self, table: Table[ChoiceT], load: Load, found: Triage | None = None) -> ChoiceT:
        return largest_within(table, load, self.budget_ms)

    def check(self, levels: Sequence[Choice]) -> None:
        """Any levels will do."""

    def smallest(self, levels: Sequence[ChoiceT]) -> ChoiceT:
        return levels[-1]

    def settings(self) -> dict[str, str | float]:
        return {"policy": "queue", "latency_budget_ms": self.budget_ms}

    def __str__(self) -> str:
        return f"queue:t={self.budget_ms:g}"


@dataclass(frozen=True)
class Deadline:
    """The default policy: the largest level at which every request that can be saved is answered in time.

    The rule of the paper looks at the last request only. This one plans for each request in hand and in the queue, with
    its own age and budget::

        a_i + r + t_k(batch in hand) + n_i (t_k(full batch) + turnaround) + w_i  <=  0.9 T_i

    for every savable request i (see elasticlm.schedule.triage). If none is savable or no level fits, the smallest level
    answers. With one request of age 0 this is the rule of the paper for 0.9 T. T is the only setting.

    >>> from elasticlm.schedule.latency import LatencyTable
    >>> table = LatencyTable.from_means({50: 40.0, 10: 8.0})
    >>> [decide(Deadline(250), table, Load(queue_depth=g)).level for g in (0, 4, 5)]
    [50, 50, 10]
    """

    budget_ms: float

    def choose(self, table: Table[ChoiceT], load: Load, found: Triage) -> ChoiceT:
        for level in table.levels[:-1] if found.due else ():
            in_hand_ms = table.mean_ms(level, load.rows, load.tokens)
            round_ms = table.mean_ms(level, load.full_rows, load.tokens) + load.turnaround_ms
            if all(over_ms + in_hand_ms + rounds * round_ms <= 0 for rounds, over_ms in found.due):
                return level
        return table.levels[-1]

    def check(self, levels: Sequence[Choice]) -> None:
        """Any levels will do."""

    def smallest(self, levels: Sequence[ChoiceT]) -> ChoiceT:
        return levels[-1]

    def settings(self) -> dict[str, str | float]:
        return {"policy": "deadline", "latency_budget_ms": self.budget_ms}

    def __str__(self) -> str:
        return f"deadline:t={self.budget_ms:g}"


@dataclass(frozen=True)
class Slack:
    """The paper's rule with a share ``alpha`` of the budget, plus the deadlines of the batch.

    The rule alone lets the last request in the queue finish exactly at the budget, so that under sustained load all
    requests finish close to it, and it ignores the turnaround time per waiting batch. This policy leaves a margin and
    counts the turnaround. It also chooses a level at which every request of the batch is answered in time; requests
    that would be late even at the smallest level are ignored in this choice.
    """

    budget_ms: float
    alpha: float = ALPHA

    def choose(self, table: Table[ChoiceT], load: Load, found: Triage | None = None) -> ChoiceT:
        budgets = load.budgets_ms or (self.budget_ms,) * len(load.ages_ms)
        spare = [min(self.budget_ms, budget) - (age or 0.0) - load.overhead_ms
                 for budget, age in zip(budgets, load.ages_ms, strict=True)]  # fmt: skip
        fastest = table.p95_ms(table.levels[-1], load.rows, load.tokens)
        tightest = min((ms for ms in spare if ms >= fastest), default=math.inf)
        limit_ms = self.alpha * self.budget_ms
        return largest_within(table, load, limit_ms, tightest_ms=tightest, turnaround_ms=load.turnaround_ms)

    def check(self, levels: Sequence[Choice]) -> None:
        """Any levels will do."""

    def smallest(self, levels: Sequence[ChoiceT]) -> ChoiceT:
        return levels[-1]

    def settings(self) -> dict[str, str | float]:
        return {"policy": "slack", "latency_budget_ms": self.budget_ms, "alpha": self.alpha}

    def __str__(self) -> str:
        alpha = f"{self.alpha:g}".removeprefix("0")
        return f"slack:t={self.budget_ms:g},alpha={alpha}"


def largest_within(
    table: Table[ChoiceT], load: Load, limit_ms: float, *, tightest_ms: float = math.inf, turnaround_ms: float = 0.0
) -> ChoiceT:
    """Return the largest level at which both the last request in the queue and the current batch are in time.

        t_k(rows, tokens) + ceil(g / (B W)) (t_k(rows B / b, tokens) + turnaround) + r <= limit
        and  t_k^p95(rows, tokens) <= tightest

    With B = W = b = 1 and r = turnaround = 0 this is the paper's (g + 1) t_k <= T. If no level fits, the smallest level
    is returned, because a late answer is better than none.
    """
    rounds = math.ceil(load.queue_depth / (load.batch_size * load.workers))
    for level in table.levels[:-1]:
        in_hand = table.mean_ms(level, load.rows, load.tokens)
        behind = rounds * (table.mean_ms(level, load.full_rows, load.tokens) + turnaround_ms)
        in_time = table.p95_ms(level, load.rows, load.tokens) <= tightest_ms
        if in_time and in_hand + behind + load.overhead_ms <= limit_ms:
            return level
    return table.levels[-1]


POLICIES: dict[str, type[Policy]] = {"deadline": Deadline, "slack": Slack, "queue": Queue, "fixed": Fixed, **PEERS}
OPTIONS: dict[str, tuple[str, ...]] = dict.fromkeys(POLICIES, ("t",)) | {"slack": ("t", "alpha"), "fixed": ()}


def parse_policy(text: str, *, default_budget_ms: float | None = None, default_alpha: float = ALPHA) -> Policy:
    """Return the policy written ``deadline:t=250``, ``slack:t=250,alpha=0.6``, ``queue:t=250`` or ``fixed:50``.

    If t or alpha is missing, the default applies. Raises InputError for unknown names, with the closest match.
    """
    name, _, arguments = text.strip().partition(":")
    if name not in POLICIES:
        expected = "expected deadline:t=MS, slack:t=MS,alpha=SHARE, queue:t=MS or fixed:LEVEL"
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
        raise InputError(f"policy {text!r}: t and alpha must be numbers, such as t=250,alpha=0.6") from None
    if not 0 < budget_ms < math.inf:
        raise InputError(f"policy {text!r}: needs a budget above 0 in ms, such as {name}:t=250")
    if not 0 < alpha <= 1:
        raise InputError(f"policy {text!r}: alpha must be above 0 and at most 1")
    if name == "slack":
        return Slack(budget_ms, alpha)
    with_budget: dict[str, Callable[[float], Policy]] = {"queue": Queue, "deadline": Deadline, **PEERS}
    return with_budget[name](budget_ms)
