"""The deadline schedule as tables: which requests can be saved, at which level, and who is refused."""

import itertools
import random
from dataclasses import replace

import pytest

from elasticlm import LatencyTable, Load
from elasticlm.schedule.policies import Deadline, Decision, Fixed, Slack, decide, largest_within
from elasticlm.schedule.triage import LATE

TABLE = LatencyTable.from_means({100: 50.0, 50: 25.0, 10: 5.0})


def level(load, budget_ms=250.0, late="shed"):
    return decide(Deadline(budget_ms), TABLE, load, late).level


def test_one_request_of_age_0_gets_the_papers_law_with_nine_tenths_of_the_budget():
    for depth, budget_ms, turnaround_ms in itertools.product(range(12), (60, 120, 250, 500), (0.0, 3.0)):
        load = Load(queue_depth=depth, ages_ms=(0.0,), overhead_ms=2.0, turnaround_ms=turnaround_ms)
        by_law = largest_within(TABLE, load, 0.9 * budget_ms, turnaround_ms=turnaround_ms)
        assert level(load, budget_ms) == by_law


@pytest.mark.parametrize(
    ("age_ms", "waiting_ms", "chosen"),
    [
        (0.0, (), 100),
        (175.0, (), 100),  # 175 + 50 <= 225
        (176.0, (), 50),
        (201.0, (), 10),
        (0.0, (175.0,), 50),  # it waits one round: 175 + 2 x 25 <= 225
        (0.0, (100.0,), 100),
        (0.0, (126.0,), 50),
        (0.0, (0.0, 0.0, 175.0), 10),  # three rounds behind
        (0.0, (None, None, None), 100),  # an unknown age counts as 0
        (0.0, (245.0,), 100),  # not even the smallest level saves it: nobody hurries for it
    ],
)
def test_every_savable_request_is_planned_for(age_ms, waiting_ms, chosen):
    assert level(Load(queue_depth=len(waiting_ms), ages_ms=(age_ms,), waiting_ages_ms=waiting_ms)) == chosen


def test_waiting_requests_that_are_lost_are_passed_over_at_the_cost_of_refusing_them():
    lost = (249.0,) * 5
    load = Load(queue_depth=6, ages_ms=(0.0,), waiting_ages_ms=(*lost, 100.0))
    assert level(load) == 100  # the last one waits one round, not six
    dear = Load(queue_depth=6, ages_ms=(0.0,), waiting_ages_ms=(*lost, 100.0), refusal_ms=6.0)
    assert level(dear) == 50  # 100 + 5 x 6 + 2 x 50 > 225


@pytest.mark.parametrize(("workers", "batch_size", "fits"), [(1, 1, 3), (2, 1, 6), (1, 4, 3), (2, 4, 6)])
def test_workers_and_batches_share_the_rounds(workers, batch_size, fits):
    """Level 100 takes 50 ms per row; at T = 250 ms a batch in hand and so many waiting requests fit."""

    def load(waiting):
        return Load(queue_depth=waiting, workers=workers, batch_size=batch_size, batch=batch_size, rows=batch_size,
                    ages_ms=(0.0,) * batch_size)  # fmt: skip

    budget_ms = 250.0 * batch_size
    assert level(load(fits * batch_size), budget_ms) == 100
    assert level(load(fits * batch_size + 1), budget_ms) == 50


@pytest.mark.parametrize(
    ("late", "ages_ms", "refused"),
    [
        ("shed", (0.0, 300.0), (1,)),
        ("reject", (0.0, 300.0), (1,)),
        ("answer", (0.0, 300.0), ()),
        ("shed", (300.0, 300.0), ()),  # nobody can be saved: a late answer is better than none
        ("reject", (300.0, 300.0), (0, 1)),
        ("shed", (None, 300.0), (1,)),
        ("reject", (None, 300.0), (1,)),  # an unknown age is never refused
    ],
)
def test_who_is_refused(late, ages_ms, refused):
    load = Load(batch=2, batch_size=2, rows=2, ages_ms=ages_ms)
    assert decide(Deadline(250.0), TABLE, load, late).refused == refused


def test_a_late_request_is_refused_for_one_that_waits():
    load = Load(queue_depth=1, ages_ms=(300.0,), waiting_ages_ms=(100.0,))
    assert decide(Deadline(250.0), TABLE, load) == Decision(10, (0,))
    assert decide(Deadline(250.0), TABLE, Load(queue_depth=0, ages_ms=(300.0,))) == Decision(10, ())


def test_the_level_is_chosen_for_the_requests_that_remain():
    load = Load(batch=4, batch_size=4, rows=4, ages_ms=(0.0, 300.0, 300.0, 300.0))
    assert decide(Deadline(100.0), TABLE, load) == Decision(100, (1, 2, 3))  # 1 x 50 <= 90, 4 x 50 is not
    assert level(load, 100.0, late="answer") == 10


def test_budgets_of_clients_count_with_a_floor():
    def chosen(budget_ms):
        return level(Load(ages_ms=(0.0,), budgets_ms=(budget_ms,), overhead_ms=1.0))

    assert [chosen(budget) for budget in (900.0, 250.0, 57.0, 56.0, 29.0, 28.0)] == [100, 100, 100, 50, 50, 10]
    impossible = Load(ages_ms=(0.0,), budgets_ms=(0.1,), queue_depth=1, overhead_ms=1.0)
    assert decide(Deadline(250.0), TABLE, impossible).refused == ()  # raised to what the smallest level needs


def test_what_one_request_states_of_itself_never_changes_the_level_of_its_batch_mates():
    random.seed(1)
    lowered = refused = 0
    for _ in range(3_000):
        batch, depth = random.randrange(2, 5), random.randrange(6)
        counted = tuple(random.choice([None, random.uniform(0, 300)]) for _ in range(batch))
        fields = {
            "queue_depth": depth, "batch": batch, "rows": batch, "batch_size": 4, "budget_ms": 250.0,
            "overhead_ms": 2.0, "refusal_ms": 3.0, "turnaround_ms": random.uniform(0, 5), "counted_ages_ms": counted,
            "waiting_ages_ms": tuple(random.uniform(0, 250) for _ in range(depth)),
        }  # fmt: skip
        policy, late = random.choice([Deadline(250.0), Slack(250.0)]), random.choice(LATE)
        silent = Load(ages_ms=counted, budgets_ms=(250.0,) * batch, **fields)
        ages, budgets = (random.uniform(0, 300), *counted[1:]), (random.uniform(0.1, 250), *silent.budgets_ms[1:])
        hurried = Load(ages_ms=ages, budgets_ms=budgets, **fields)
        before, after = (decide(policy, TABLE, load, late) for load in (silent, hurried))
        mates = range(1, batch)
        assert [i in before.refused for i in mates] == [i in after.refused for i in mates]
        if set(after.refused) != set(range(batch)):
            assert after.level == before.level
        refused += (0 in after.refused) > (0 in before.refused)
        lowered += decide(policy, TABLE, replace(hurried, counted_ages_ms=None), late).level < before.level
    assert refused > 500
    assert lowered > 100


def test_a_hurried_request_that_is_alone_lowers_its_own_level():
    fields = {"ages_ms": (0.0,), "budgets_ms": (30.0,)}
    assert level(Load(**fields, counted_ages_ms=(0.0,))) == 50
    assert level(Load(**fields)) == 50
    both = {"batch": 2, "batch_size": 2, "rows": 2, "ages_ms": (0.0, 0.0), "budgets_ms": (30.0, 250.0)}
    assert level(Load(**both)) == 10
    assert level(Load(**both, counted_ages_ms=(0.0, 0.0))) == 100
    assert level(Load(**both, counted_ages_ms=(200.0, 0.0))) == 10  # the server's own count of ages does count


def test_without_a_savable_request_or_a_level_that_fits_the_smallest_answers():
    assert level(Load(ages_ms=(400.0,))) == 10
    assert level(Load(ages_ms=(0.0,), queue_depth=10_000)) == 10
    assert level(Load(ages_ms=(0.0,), budgets_ms=(5.5,))) == 10


def test_every_policy_sheds_alike_and_a_fixed_level_by_its_own_time():
    load = Load(queue_depth=1, ages_ms=(230.0,), waiting_ages_ms=(0.0,), budget_ms=250.0)
    assert decide(Fixed(100), TABLE, load) == Decision(100, (0,))  # 230 + 50 > 250
    assert decide(Fixed(10), TABLE, load) == Decision(10, ())
    assert decide(Slack(250.0), TABLE, load).refused == ()
    assert decide(Fixed(100), TABLE, Load(ages_ms=(1e6,))) == Decision(100, ())  # without a budget nothing is late


def test_a_slow_machine_is_planned_for():
    assert level(Load(ages_ms=(0.0,), table_ratio=1.0), 60.0) == 100
    assert level(Load(ages_ms=(0.0,), table_ratio=2.0), 60.0) == 50
    assert level(Load(ages_ms=(0.0,), table_ratio=4.0), 60.0) == 10


def test_the_level_never_rises_when_things_get_worse_while_the_same_requests_are_savable():
    random.seed(0)
    compared = 0
    for _ in range(3_000):
        depth = random.randrange(6)
        fields = {
            "queue_depth": depth, "batch": 2, "rows": 2, "batch_size": 2, "overhead_ms": random.uniform(0, 3),
            "ages_ms": tuple(random.uniform(0, 120) for _ in range(2)), "turnaround_ms": random.uniform(0, 5),
            "waiting_ages_ms": tuple(random.uniform(0, 120) for _ in range(depth)), "budget_ms": 250.0,
        }  # fmt: skip
        worse = dict(fields)
        kind = random.choice(["queue_depth", "ages_ms", "waiting_ages_ms", "turnaround_ms", "overhead_ms", "budget_ms"])
        if kind == "queue_depth":
            worse |= {"queue_depth": depth + 1, "waiting_ages_ms": (*fields["waiting_ages_ms"], 0.0)}
        elif kind.endswith("ages_ms"):
            worse[kind] = tuple(age + random.uniform(0, 30) for age in fields[kind])
        else:
            worse[kind] = fields[kind] - 20 if kind == "budget_ms" else fields[kind] + 2
        decisions = [decide(Deadline(250.0), TABLE, Load(**each)) for each in (fields, worse)]
        if not any(decision.refused for decision in decisions) and _all_savable(fields) and _all_savable(worse):
            compared += 1
            assert decisions[1].level <= decisions[0].level, (fields, worse)
    assert compared > 500


def _all_savable(fields):
    """Whether the smallest level answers everybody in time: then the savable set is everybody."""
    in_hand_ms, round_ms = 2 * 5.0, 2 * 5.0 + fields["turnaround_ms"]
    waits = [(age, 0) for age in fields["ages_ms"]]
    waits += [(age, i // 2 + 1) for i, age in enumerate(fields["waiting_ages_ms"])]
    return all(age + fields["overhead_ms"] + in_hand_ms + n * round_ms <= fields["budget_ms"] for age, n in waits)
