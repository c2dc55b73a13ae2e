"""Which of the requests in hand and in the queue can still be answered in time: the first step of ``deadline``.

Request i has the age a_i and the budget T_i. It is *savable* if the smallest level answers it in time, after those
requests ahead of it that are savable themselves. The others are assumed to be refused, each at the cost c::

    in hand:  a_i + r + t_min(batch in hand)                                         <= T_i
    waiting:  a_i + r + t_min(batch in hand) + n_i (t_min(full) + turnaround) + w_i  <= T_i

    n_i = ceil((savable requests waiting ahead of i + 1) / (B W))
    w_i = c (requests ahead of i that are not savable) / W

An unknown age counts as 0, and a request of unknown age is never refused. Budgets below r + t_min(one request) are
raised to it.

Ages and budgets from a request's own headers are not trusted to change the level of its batch mates, unless a setting
says so (Load.counted_ages_ms): where several share a batch, the level is chosen without them. They still decide
whether the request itself is refused.
"""

import math
from dataclasses import dataclass

from elasticlm.schedule.load import Load
from elasticlm.schedule.table import ChoiceT, Table

LATE = ("shed", "answer", "reject")
"""What to do with requests in hand that cannot be answered in time: refuse them if others can be saved (``shed``),
always (``reject``), or never (``answer``)."""
MARGIN = 0.9
"""Share of each budget that ``deadline`` plans with."""


@dataclass(frozen=True)
class Triage:
    """The result for one batch.

    Attributes:
        refused: positions in the batch of the requests that are refused.
        due: for each number of rounds n that a savable request waits (0: in hand), how far the most urgent one is from
            its planned time, without service times: the largest a_i + r + w_i - 0.9 T_i in ms. Empty if no request is
            savable.
        by_own_headers: positions of further requests that are refused, because of what they state of themselves; the
            level is chosen as if they were answered.
    """

    refused: tuple[int, ...]
    due: tuple[tuple[int, float], ...]
    by_own_headers: tuple[int, ...] = ()


def triage(table: Table[ChoiceT], smallest: ChoiceT, load: Load, late: str) -> Triage:
    """Find the savable requests, and those of the batch that are refused.

    Args:
        smallest: the smallest level that the policy can choose.
        late: one of LATE.
    """
    plan = load.for_level()
    savable, lost = _in_hand(table, smallest, plan)
    due = {0: max(savable)} if savable else {}
    if math.isfinite(load.budget_ms):
        in_hand_ms = load.overhead_ms + table.mean_ms(smallest, load.rows, load.tokens)
        _add_waiting(due, table, smallest, load, in_hand_ms, len(lost), late)
    refuses = late == "reject" or (late == "shed" and bool(due))
    refused = [i for i in lost if plan.ages_ms and plan.ages_ms[i] is not None] if refuses else []
    by_own_headers: list[int] = []
    if refuses and plan is not load:
        _, own_lost = _in_hand(table, smallest, load)
        by_own_headers = [i for i in own_lost if load.ages_ms and load.ages_ms[i] is not None and i not in refused]
    return Triage(tuple(refused), tuple(due.items()), tuple(by_own_headers))


def _in_hand(table: Table[ChoiceT], smallest: ChoiceT, load: Load) -> tuple[list[float], list[int]]:
    """Return a_i + r - 0.9 T_i of the savable requests of the batch, in ms, and the positions of the others."""
    in_hand_ms = load.overhead_ms + table.mean_ms(smallest, load.rows, load.tokens)
    floor_ms = load.overhead_ms + table.mean_ms(smallest, load.rows / load.batch, load.tokens)
    savable, lost = [], []
    for i in range(load.batch):
        age_ms = (load.ages_ms[i] if load.ages_ms else None) or 0.0
        budget_ms = min(load.budget_ms, max(load.budgets_ms[i], floor_ms)) if load.budgets_ms else load.budget_ms
        if age_ms + in_hand_ms <= budget_ms:
            savable.append(age_ms + load.overhead_ms - MARGIN * budget_ms)
        else:
            lost.append(i)
    return savable, lost


def _add_waiting(
    due: dict[int, float],
    table: Table[ChoiceT],
    smallest: ChoiceT,
    load: Load,
    in_hand_ms: float,
    lost: int,
    late: str,
) -> None:
    """Add n_i and a_i + r + w_i - 0.9 T of the savable requests that wait.

    This runs for every request in the queue before every batch, so it is written for speed.
    """
    count, round_ms = load.queue_depth, table.mean_ms(smallest, *load.full_batch) + load.turnaround_ms
    per_round, spare_ms = load.batch_size * load.workers, load.budget_ms - in_hand_ms
    planned_ms, cost_ms = MARGIN * load.budget_ms - load.overhead_ms, load.refusal_ms / load.workers
    ages_ms = load.waiting_ages_ms[:count] + (None,) * (count - len(load.waiting_ages_ms))
    refused_ms = lost * cost_ms if late != "answer" else 0.0
    ahead, rounds, rounds_ms = 0, 1, round_ms
    for age in ages_ms:
        waited_ms = age + refused_ms if age else refused_ms
        savable = waited_ms + rounds_ms <= spare_ms
        if savable:
            over = waited_ms - planned_ms
            if over > due.get(rounds, -math.inf):
                due[rounds] = over
        if savable or late == "answer":
            ahead += 1
            if ahead == per_round:
                ahead, rounds, rounds_ms = 0, rounds + 1, rounds_ms + round_ms
                if rounds_ms > spare_ms:
                    return  # nobody behind this one is savable
        else:
            refused_ms += cost_ms
