"""The figures of a trace, by hand on a small one."""

import pandas as pd
import pytest

from elasticlm.benchmarks.summary import COLUMNS, arm_budget_ms, behind, effective_quality, lead, rounds, summarise

ROWS = [
    # arm, t_s, users, queue_depth, level, latency_ms, status, query_id, quality
    ("slack:t=100,alpha=.6", 0.0, 1, 0, "100", 40.0, 200, "a", 1.0),
    ("slack:t=100,alpha=.6", 0.5, 2, 3, "50", 100.0, 200, "b", 0.5),  # within T: the bound itself counts
    ("slack:t=100,alpha=.6", 1.0, 3, 9, "12.5", 120.0, 200, "c", 0.8),  # late at 100, in time at 200
    ("slack:t=100,alpha=.6", 1.5, 3, 0, None, 20.0, 503, "d", None),  # quick, but no answer
    ("fixed:100", 0.0, 1, 0, "100", 300.0, 200, "a", 1.0),
    ("fixed:100", 0.5, 1, None, None, 5000.0, 0, "b", None),  # never answered
]


@pytest.fixture
def trace():
    return pd.DataFrame(ROWS, columns=COLUMNS)


def test_the_summary_of_a_small_trace(trace):
    assert summarise(trace, [100, 200]) == {
        "slack:t=100,alpha=.6": {
            "requests": 4,
            "failures": 1,
            "p50_ms": 100.0,
            "p95_ms": 118.0,
            "p99_ms": 119.6,
            "quality": 0.7667,
            "level_shares": {"100": 0.3333, "50": 0.3333, "12.5": 0.3333},
            "budgets": {
                "100": {"within_budget": 0.5, "effective_quality": 0.375},
                "200": {"within_budget": 0.75, "effective_quality": 0.575},
            },
        },
        "fixed:100": {
            "requests": 2,
            "failures": 1,
            "p50_ms": 300.0,
            "p95_ms": 300.0,
            "p99_ms": 300.0,
            "quality": 1.0,
            "level_shares": {"100": 1.0},
            "budgets": {
                "100": {"within_budget": 0.0, "effective_quality": 0.0},
                "200": {"within_budget": 0.0, "effective_quality": 0.0},
            },
        },
    }


def test_an_arm_that_answered_nothing_has_no_latency_and_no_quality(trace):
    silent = summarise(trace.iloc[[5]], [37.5])["fixed:100"]
    assert (silent["p50_ms"], silent["quality"], silent["level_shares"]) == (None, None, {})
    assert silent["budgets"] == {"37.5": {"within_budget": 0.0, "effective_quality": 0.0}}


@pytest.mark.parametrize(("budget_ms", "value"), [(39, 0), (40, 1 / 4), (100, 1.5 / 4), (1e9, 2.3 / 4)])
def test_effective_quality_counts_late_and_failed_requests_as_nothing(trace, budget_ms, value):
    assert effective_quality(trace.iloc[:4], budget_ms) == pytest.approx(value)


def test_an_arm_works_towards_its_policys_budget_else_the_tightest(trace):
    summary = {"arms": summarise(trace, [80, 200])}
    assert arm_budget_ms("slack:t=100,alpha=.6", summary) == 100
    assert arm_budget_ms("fixed:100", summary) == 80


def test_the_lead_is_over_the_questions_that_both_were_asked(trace):
    found = lead(trace, [100, 300])
    assert list(found) == ["100", "300"]
    assert {budget: one["arm"] for budget, one in found.items()} == dict.fromkeys(found, "slack:t=100,alpha=.6")
    over = found["100"]["over"]["fixed:100"]
    assert over["questions"] == 2  # a: 1 and 0 (late), b: .5 and 0 (never answered); c and d only one was asked
    assert over["difference"] == [0.75, 0.5, 1.0]
    assert found["300"]["over"]["fixed:100"]["difference"] == [0.25, 0.0, 0.5]  # a in time under both
    assert behind({"lead": found}, "fixed:100", "100") == "0.750 (0.500 to 1.000)"
    assert behind({"lead": found}, "slack:t=100,alpha=.6", "100") == ""


def test_a_question_asked_twice_counts_once_in_the_lead(trace):
    again = trace.assign(quality=trace["quality"] / 2)
    assert lead(pd.concat([trace, again]), [100])["100"]["over"]["fixed:100"]["difference"] == [0.5625, 0.375, 0.75]


def test_arms_without_a_common_question_have_no_lead(trace):
    assert lead(trace.iloc[[2, 4]], [100])["100"] == {"arm": "slack:t=100,alpha=.6", "over": {}}


def test_rounds_tell_the_lead_with_an_interval():
    rows = []
    for repeat, right in enumerate((8, 9, 10)):
        for arm, quality in (("slack:t=100,alpha=.6", 1.0), ("fixed:5", 0.5)):
            good = right if arm.startswith("slack") else 10
            for i in range(10):
                row = (arm, i / 10, 1, 0, "5", 50.0 if i < good else 150.0, 200, "q", quality)
                rows.append(dict(zip(COLUMNS, row, strict=True)) | {"repeat": repeat})
    found = rounds(pd.DataFrame(rows), [100])
    assert found["arms"]["slack:t=100,alpha=.6"]["100"]["within_budget"] == [0.8, 0.9, 1.0]
    assert found["lead"]["100"]["arm"] == "slack:t=100,alpha=.6"
    mean, low, high = found["lead"]["100"]["fixed:5"]
    assert mean == pytest.approx(0.4)
    assert (low, high) == pytest.approx((0.4 - 4.303 * 0.1 / 3**0.5, 0.4 + 4.303 * 0.1 / 3**0.5), abs=1e-3)


def test_at_each_budget_the_arm_that_works_towards_it_leads(trace):
    slower = trace.iloc[:4].assign(arm="slack:t=200,alpha=.6")
    lead = rounds(pd.concat([trace, slower]).assign(repeat=0), [100, 200, 300])["lead"]
    assert [lead[budget]["arm"] for budget in ("100", "200", "300")] == [
        "slack:t=100,alpha=.6", "slack:t=200,alpha=.6", "slack:t=100,alpha=.6"
    ]  # fmt: skip
    assert lead["200"]["fixed:100"] == [0.575, None, None]
