"""The elastic schedule (ElasticLM, section 4.3): policies that choose a level from a latency table and the load.

With g requests in the queue, level k answers the last one after about (g + 1) t_k. Each policy is a frozen value;
``decide`` is the one function that servers and the simulator call. Policies are written ``deadline:t=250``,
``slack:t=250,alpha=0.6``, ``queue:t=250`` or ``fixed:50``. Levels of a two-stage pipeline are pairs (see
elasticlm.schedule.cascade): ``fixed:50+10``. Policies of other systems are in elasticlm.schedule.peers.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Generic, cast

from elasticlm.errors import InputError
from elasticlm.hints import near_match
from elasticlm.model.structure import Choice, level_name, parse_choice
from elasticlm.schedule.base import Policy, WithBudget, largest
from elasticlm.schedule.correction import ScaledTable
from elasticlm.schedule.load import Load
from elasticlm.schedule.peers import PEERS
from elasticlm.schedule.table import ChoiceT, Table
from elasticlm.schedule.triage import Triage, triage

ALPHA = 0.6  # share of the budget that `slack` plans with


@dataclass(frozen=True)
class Decision(Generic[ChoiceT]):
    """What becomes of a batch.

    Attributes:
        level: the level that answers it.
        refused: positions in the batch of the requests that are refused because they cannot be answered in time.
    """

    level: ChoiceT
    refused: tuple[int, ...] = ()


def decide(policy: Policy, table: Table[ChoiceT], load: Load, late: str = "shed") -> Decision[ChoiceT]:
    """Return the level of a batch and the requests in it that are refused.

    Args:
        load: the batch and the queue behind it.
        late: what to do with requests that cannot be answered in time, see elasticlm.schedule.triage.LATE.

    Examples:
        >>> from elasticlm.schedule.latency import LatencyTable
        >>> table = LatencyTable.from_means({50: 40.0, 10: 8.0})
        >>> decide(Deadline(250), table, Load(ages_ms=(190.0,)))
        Decision(level=10, refused=())
        >>> decide(Deadline(250), table, Load(ages_ms=(300.0,), queue_depth=1, waiting_ages_ms=(0.0,)))
        Decision(level=10, refused=(0,))
    """
    smallest = policy.smallest(table.levels)
    table = table if load.table_ratio == 1 else ScaledTable(table, load.table_ratio)
    if policy.budget_ms and policy.budget_ms < load.budget_ms:
        load = replace(load, budget_ms=policy.budget_ms)
    found = triage(table, smallest, load, late)
    kept = [i for i in range(load.batch) if i not in found.refused]
    refused = tuple(sorted((*found.refused, *found.by_own_headers)))
    if not kept:
        return Decision(smallest, refused)
    return Decision(policy.choose(table, load.for_level().of_requests(kept), found), refused)


@dataclass(frozen=True)
class Fixed:
    """Always chooses the same level, like a static model.

    With a budget it refuses requests that it cannot answer in time, like a static model that Clipper serves (Crankshaw
    et al., NSDI 2017).
    """

    level: Choice
    budget_ms: float | None = None

    def choose(self, table: Table[ChoiceT], load: Load, found: Triage | None = None) -> ChoiceT:
        return cast(ChoiceT, self.level)  # see check()

    def check(self, levels: Sequence[Choice]) -> None:
        if self.level not in levels:
            offered = ", ".join(map(level_name, levels))
            raise InputError(f"policy {self}: level {level_name(self.level)} is not among the levels {offered}")

    def smallest(self, levels: Sequence[ChoiceT]) -> ChoiceT:
        return cast(ChoiceT, self.level)

    def settings(self) -> dict[str, str | float]:
        budget = {"latency_budget_ms": self.budget_ms} if self.budget_ms else {}
        return {"policy": f"fixed:{level_name(self.level)}"} | budget

    def __str__(self) -> str:
        return f"fixed:{level_name(self.level)}" + (f",t={self.budget_ms:g}" if self.budget_ms else "")


@dataclass(frozen=True)
class Queue(WithBudget):
    """The rule of the paper: the largest level that answers the last request in the queue within the budget.

    >>> from elasticlm.schedule.latency import LatencyTable
    >>> table = LatencyTable.from_means({50: 40.0, 10: 8.0})
    >>> [Queue(budget_ms=250).choose(table, Load(queue_depth=g)) for g in (0, 5, 6, 100)]
    [50, 50, 10, 10]
    """

    name = "queue"

    def choose(self, table: Table[ChoiceT], load: Load, found: Triage | None = None) -> ChoiceT:
        return largest_within(table, load, self.budget_ms)


@dataclass(frozen=True)
class Deadline(WithBudget):
    """The default policy: the largest level at which every request that can be saved is answered in time.

    The rule of the paper looks at the last request only. This one plans for each request in hand and in the queue, with
    its own age and budget::

        a_i + r + t_k(batch in hand) + n_i (t_k(full batch) + turnaround) + w_i  <=  0.9 T_i

    for every savable request i (see elasticlm.schedule.triage). If none is savable or no level fits, the smallest level
    answers; so it does while the queue is full, because requests are refused that it would make room for. With one
    request of age 0 this is the rule of the paper for 0.9 T. T is the only setting.

    >>> from elasticlm.schedule.latency import LatencyTable
    >>> table = LatencyTable.from_means({50: 40.0, 10: 8.0})
    >>> [decide(Deadline(250), table, Load(queue_depth=g)).level for g in (0, 4, 5)]
    [50, 50, 10]
    """

    name = "deadline"

    def choose(self, table: Table[ChoiceT], load: Load, found: Triage) -> ChoiceT:
        def fits(level: ChoiceT) -> bool:
            in_hand_ms = table.mean_ms(level, load.rows, load.tokens)
            round_ms = table.mean_ms(level, *load.full_batch) + load.turnaround_ms
            return all(over_ms + in_hand_ms + rounds * round_ms <= 0 for rounds, over_ms in found.due)

        return largest(table, fits) if found.due and not load.queue_full else table.levels[-1]


@dataclass(frozen=True)
class Slack(WithBudget):
    """The paper's rule with a share ``alpha`` of the budget, plus the deadlines of the batch.

    The rule alone lets the last request in the queue finish exactly at the budget, so that under sustained load all
    requests finish close to it, and it ignores the turnaround time per waiting batch. This policy leaves a margin and
    counts the turnaround. It also chooses a level at which every request of the batch is answered in time; requests
    that would be late even at the smallest level are ignored in this choice.
    """

    name = "slack"

    alpha: float = ALPHA

    def choose(self, table: Table[ChoiceT], load: Load, found: Triage | None = None) -> ChoiceT:
        fastest = table.p95_ms(table.levels[-1], load.rows, load.tokens)
        tightest = min((ms for ms in load.left_ms(self.budget_ms) if ms >= fastest), default=math.inf)
        limit_ms = self.alpha * self.budget_ms
        return largest_within(table, load, limit_ms, tightest_ms=tightest, turnaround_ms=load.turnaround_ms)

    def settings(self) -> dict[str, str | float]:
        return super().settings() | {"alpha": self.alpha}

    def __str__(self) -> str:
        alpha = f"{self.alpha:g}".removeprefix("0")
        return f"{super().__str__()},alpha={alpha}"


def largest_within(
    table: Table[ChoiceT], load: Load, limit_ms: float, *, tightest_ms: float = math.inf, turnaround_ms: float = 0.0
) -> ChoiceT:
    """Return the largest level at which both the last request in the queue and the current batch are in time.

        t_k(rows, tokens) + ceil(g / (B W)) (t_k(rows B / b, tokens) + turnaround) + r <= limit
        and  t_k^p95(rows, tokens) <= tightest

    With B = W = b = 1 and r = turnaround = 0 this is the paper's (g + 1) t_k <= T. If no level fits, the smallest level
    is returned.
    """
    rounds = math.ceil(load.queue_depth / (load.batch_size * load.workers))

    def fits(level: ChoiceT) -> bool:
        in_hand = table.mean_ms(level, load.rows, load.tokens)
        behind = rounds * (table.mean_ms(level, *load.full_batch) + turnaround_ms)
        in_time = table.p95_ms(level, load.rows, load.tokens) <= tightest_ms
        return in_time and in_hand + behind + load.overhead_ms <= limit_ms

    return largest(table, fits)


WITH_BUDGET: dict[str, type[WithBudget]] = {kind.name: kind for kind in (Deadline, Slack, Queue, *PEERS)}
POLICIES = (*WITH_BUDGET, "fixed")
OPTIONS: dict[str, tuple[str, ...]] = dict.fromkeys(POLICIES, ("t",)) | {"slack": ("t", "alpha")}


def parse_policy(text: str, *, default_budget_ms: float | None = None, default_alpha: float = ALPHA) -> Policy:
    """Return the policy written ``deadline:t=250``, ``slack:t=250,alpha=0.6``, ``queue:t=250`` or ``fixed:50,t=250``.

    If t or alpha is missing, the default applies; ``fixed:50`` has no budget. Raises InputError for unknown names, with
    the closest match.
    """
    name, _, arguments = text.strip().partition(":")
    if name not in POLICIES:
        expected = "expected deadline:t=MS, slack:t=MS,alpha=SHARE, queue:t=MS or fixed:LEVEL"
        raise InputError(f"policy {text!r}: {expected}{near_match(name, POLICIES)}")
    level = None
    if name == "fixed":
        level_text, _, arguments = arguments.partition(",")
        level = parse_choice(level_text)
        if not arguments:
            return Fixed(level)
    options = dict(part.partition("=")[::2] for part in arguments.split(",") if part)
    if unknown := [key for key in options if key not in OPTIONS[name]]:
        raise InputError(f"policy {text!r}: unknown option {unknown[0]!r}, expected {', '.join(OPTIONS[name])}")
    try:
        budget_ms = float(options.get("t", default_budget_ms or "nan"))
        alpha = float(options.get("alpha", default_alpha))
    except ValueError:
        raise InputError(f"policy {text!r}: t and alpha must be numbers, such as t=250,alpha=0.6") from None
    if not 0 < budget_ms < math.inf:
        raise InputError(f"policy {text!r}: needs a budget above 0 in ms, such as {POLICIES[0]}:t=250")
    if not 0 < alpha <= 1:
        raise InputError(f"policy {text!r}: alpha must be above 0 and at most 1")
    if level is not None:
        return Fixed(level, budget_ms)
    return Slack(budget_ms, alpha) if name == "slack" else WITH_BUDGET[name](budget_ms)
