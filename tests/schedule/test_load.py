"""Load refuses what no server can see."""

import math

import pytest

from elasticlm.errors import InputError
from elasticlm.schedule.load import Load
from elasticlm.schedule.policies import Slack


def test_what_servers_see_is_accepted():
    load = Load(
        queue_depth=3, rows=8, batch=2, batch_size=4, workers=2, ages_ms=(None, 12.5), budgets_ms=(100.0, math.inf),
        waiting_ages_ms=(3.0, None),
    )  # fmt: skip
    assert (load.queue_depth, load.ages_ms) == (3, (None, 12.5))
    assert Load() == Load(ages_ms=())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"batch": 0}, "batch is 0, expected 1 or more"),
        ({"rows": 0}, "rows is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"workers": 0}, "workers is 0"),
        ({"tokens": 0}, "tokens is 0"),
        ({"queue_depth": -1}, "queue_depth is -1, expected 0 or more"),
        ({"overhead_ms": math.nan}, "overhead_ms is nan"),
        ({"turnaround_ms": math.inf}, "turnaround_ms is inf"),
        ({"budgets_ms": (100.0, 50.0)}, "2 budgets_ms for a batch of 1"),
        ({"ages_ms": (1.0,), "batch": 2}, "1 ages_ms for a batch of 2"),
        ({"waiting_ages_ms": (-1.0,)}, "waiting_ages_ms: expected times of 0 ms or more"),
        ({"refusal_ms": -1.0}, "refusal_ms is -1"),
        ({"budget_ms": 0.0}, "budget_ms is 0"),
        ({"table_ratio": 0.0}, "table_ratio is 0"),
        ({"ages_ms": (-1.0,)}, "ages_ms: expected times of 0 ms or more"),
        ({"ages_ms": (math.nan,)}, "ages_ms"),
        ({"waiting_rows": 0.0}, "waiting_rows is 0.0"),
        ({"waiting_tokens": float("nan")}, "waiting_tokens is nan"),
        ({"ages_ms": (1.0,), "budgets_ms": (0.0,)}, "budgets_ms: expected times above 0 ms"),
    ],
)
def test_impossible_loads_are_refused(fields, message):
    with pytest.raises(InputError, match=message):
        Load(**fields)


def test_a_part_of_a_batch_has_its_share_of_rows_and_its_own_ages():
    load = Load(rows=8, batch=4, batch_size=4, ages_ms=(1.0, 2.0, None, 4.0), budgets_ms=(10.0, 20.0, 30.0, 40.0))
    part = load.of_requests([1, 3])
    assert (part.batch, part.rows, part.ages_ms, part.budgets_ms) == (2, 4, (2.0, 4.0), (20.0, 40.0))
    assert part.full_batch == load.full_batch == (8, None)


def test_those_that_wait_may_be_longer_than_those_in_hand():
    load = Load(tokens=20, batch_size=4, waiting_rows=2.5, waiting_tokens=96.0)
    assert load.full_batch == (10.0, 96.0)


def test_a_policy_refuses_no_valid_load():
    from elasticlm.schedule.latency import LatencyTable

    table = LatencyTable.from_means({50: 40.0, 10: 8.0})
    assert Slack(250).choose(table, Load(ages_ms=(10.0,))) == 50
