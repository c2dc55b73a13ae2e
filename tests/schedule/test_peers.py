"""Policies of other systems, as tables."""

import pytest

from elasticlm import LatencyTable, Load, parse_policy
from elasticlm.schedule.admission import capacity_rps
from elasticlm.schedule.policies import decide

TABLE = LatencyTable.from_means({100: 50.0, 50: 25.0, 10: 5.0})  # 20, 40 and 200 requests per second


@pytest.mark.parametrize(("age_ms", "level"), [(0.0, 100), (200.0, 100), (201.0, 50), (226.0, 10), (None, 100)])
def test_slackfit_looks_at_the_most_urgent_request_only(age_ms, level):
    load = Load(ages_ms=(age_ms,), queue_depth=100)
    assert decide(parse_policy("slackfit:t=250"), TABLE, load, "answer").level == level


@pytest.mark.parametrize(("arrivals_rps", "level"), [(0.0, 100), (19.0, 100), (20.0, 50), (38.0, 50), (39.0, 10)])
def test_demand_covers_the_arrival_rate_with_headroom(arrivals_rps, level):
    assert decide(parse_policy("demand:t=250"), TABLE, Load(arrivals_rps=arrivals_rps)).level == level


@pytest.mark.parametrize(
    ("last_level", "arrivals_rps", "level"),
    [
        (None, 18.0, 100),
        (100, 18.0, 100),  # up to 0.9 of its capacity
        (100, 19.0, 50),
        (50, 18.0, 50),  # it is switched to again at 0.7
        (50, 14.0, 100),
        (10, 30.0, 10),
        (10, 28.0, 50),
        (50, 30.0, 50),
    ],
)
def test_switching_returns_to_a_larger_level_later_than_it_leaves_it(last_level, arrivals_rps, level):
    load = Load(arrivals_rps=arrivals_rps, last_level=last_level)
    assert decide(parse_policy("switching:t=250"), TABLE, load).level == level


def test_capacity_counts_batches_workers_and_the_turnaround():
    server = {"batch_rows": 2, "tokens": None, "batch_size": 2, "workers": 3, "turnaround_ms": 10.0}
    assert capacity_rps(TABLE, 10, **server) == pytest.approx(2 * 3 * 1000 / (2 * 5 + 10))
    busy = Load(batch_size=2, batch=1, workers=3, turnaround_ms=10.0, arrivals_rps=capacity_rps(TABLE, 50, **server))
    assert decide(parse_policy("demand:t=250"), TABLE, busy).level == 10  # level 50 has no headroom left


@pytest.mark.parametrize("name", ["slackfit", "switching", "demand"])
def test_peers_shed_as_deadline_does_and_are_written_as_they_are_read(name):
    policy = parse_policy(f"{name}:t=250")
    assert str(policy) == f"{name}:t=250"
    load = Load(queue_depth=1, ages_ms=(300.0,), waiting_ages_ms=(0.0,))
    assert decide(policy, TABLE, load).refused == (0,)
