import pytest

from elasticlm import InputError, LatencyTable, Load, parse_policy
from elasticlm.schedule.policies import Fixed, Queue, Slack

TABLE = LatencyTable.from_means({100: 50.0, 50: 25.0, 10: 5.0})


@pytest.mark.parametrize(
    ("depth", "level"), [(0, 100), (4, 100), (5, 50), (9, 50), (10, 10), (49, 10), (50, 10), (10_000, 10)]
)
def test_queue_is_the_papers_law_with_its_boundaries(depth, level):
    """(g + 1) t_k <= T: at T = 250 level 100 runs up to g = T / t_k - 1 = 4."""
    assert Queue(250).choose(TABLE, Load(queue_depth=depth)) == level


@pytest.mark.parametrize(("depth", "rounds"), [(0, 1), (1, 2), (8, 2), (9, 3), (16, 3), (17, 4)])
def test_a_full_batch_of_eight_waits_its_rounds(depth, rounds):
    """t_k for the batch in hand and one more for each batch behind it."""
    per_batch = 8 * 50.0
    load = Load(queue_depth=depth, rows=8, batch=8, batch_size=8)
    assert Queue(rounds * per_batch).choose(TABLE, load) == 100
    assert Queue(rounds * per_batch - 1).choose(TABLE, load) == 50


def test_a_batch_that_is_not_full_plans_for_full_ones_behind_it():
    load = Load(queue_depth=1, rows=2, batch=2, batch_size=8)
    assert Queue(2 * 50 + 8 * 50).choose(TABLE, load) == 100
    assert Queue(2 * 50 + 8 * 50 - 1).choose(TABLE, load) == 50


def test_workers_share_the_queue():
    assert Queue(100).choose(TABLE, Load(queue_depth=2)) == 50
    assert Queue(100).choose(TABLE, Load(queue_depth=2, workers=2)) == 100


def test_overhead_counts_once():
    assert Queue(50).choose(TABLE, Load(overhead_ms=0)) == 100
    assert Queue(50).choose(TABLE, Load(overhead_ms=1)) == 50


def test_the_turnaround_counts_once_for_every_batch_that_waits_and_only_for_slack():
    load = Load(queue_depth=4, turnaround_ms=5)
    assert Slack(5 * 50 + 4 * 5, alpha=1).choose(TABLE, load) == 100
    assert Slack(5 * 50 + 4 * 5 - 1, alpha=1).choose(TABLE, load) == 50
    assert Queue(5 * 50).choose(TABLE, load) == 100  # the paper's law as printed


def test_policies_are_monotone_in_depth_and_budget():
    for make in (Queue, Slack):
        for budget in (20, 60, 125, 250, 500):
            levels = [make(budget).choose(TABLE, Load(queue_depth=depth)) for depth in range(40)]
            assert levels == sorted(levels, reverse=True)
        for depth in range(40):
            levels = [make(budget).choose(TABLE, Load(queue_depth=depth)) for budget in range(10, 600, 10)]
            assert levels == sorted(levels)


@pytest.mark.parametrize(
    ("ages", "budgets", "level"),
    [
        ((), (), 100),
        ((0.0,), (), 100),
        ((200.0,), (), 100),  # 200 + 50 <= 250
        ((201.0,), (), 50),
        ((226.0,), (), 10),
        ((246.0,), (), 100),  # beyond saving: not even level 10 answers it in time
        ((246.0, 201.0), (), 50),  # the others in the batch still count
        ((0.0,), (30.0,), 50),  # a tighter budget of its own
        ((0.0,), (900.0,), 100),  # T_i = min(T, header)
        ((201.0,), (900.0,), 50),
    ],
)
def test_slack_makes_no_request_late_that_can_be_saved(ages, budgets, level):
    load = Load(ages_ms=ages, budgets_ms=budgets, rows=1, batch=max(1, len(ages)), batch_size=max(1, len(ages)))
    assert Slack(250, alpha=1).choose(TABLE, load) == level


def test_slack_plans_with_its_share_of_the_budget():
    assert Slack(250, alpha=0.6).choose(TABLE, Load(queue_depth=2)) == 100  # 3 * 50 <= 150
    assert Slack(250, alpha=0.6).choose(TABLE, Load(queue_depth=3)) == 50


@pytest.mark.parametrize(
    "text",
    ["deadline:t=250", "fixed:50", "fixed:12.5", "fixed:50,t=250", "fixed:50+10,t=40", "queue:t=250",
     "slack:t=250,alpha=.6", "slack:t=37.5,alpha=1"],
)  # fmt: skip
def test_policies_are_written_as_they_are_read(text):
    assert str(parse_policy(text)) == text


def test_defaults_fill_what_the_text_leaves_out():
    assert parse_policy("slack", default_budget_ms=90) == Slack(90, 0.6)
    assert parse_policy("slack:alpha=.5", default_budget_ms=90) == Slack(90, 0.5)
    assert parse_policy("queue", default_budget_ms=90, default_alpha=0.1) == Queue(90)
    assert parse_policy("fixed:50") == Fixed(50)
    assert parse_policy("fixed:50", default_budget_ms=90) == Fixed(50)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("slak:t=1", "did you mean 'slack'"),
        ("slack", "budget above 0"),
        ("slack:t=x", "numbers"),
        ("fixed:0", "level"),
        ("slack:t=5,alfa=1", "unknown option 'alfa'"),
        ("slack:t=5,alpha=2", "at most 1"),
        ("queue:t=-1", "budget above 0"),
        ("queue:t=inf", "budget above 0"),
        ("fixed:", "level"),
        ("fixed:50,t=0", "budget above 0"),
        ("fixed:50,alpha=1", "unknown option 'alpha'"),
        ("queue:t=5,alpha=1", "unknown option 'alpha'"),
    ],
)
def test_bad_policies_are_refused(text, message):
    with pytest.raises(InputError, match=message):
        parse_policy(text)
