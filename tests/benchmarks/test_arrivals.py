"""Arrival times of the open loop: what a spec means, and what is refused."""

import numpy as np
import pytest

from elasticlm.benchmarks.arrivals import parse_arrivals
from elasticlm.errors import InputError


@pytest.mark.parametrize(
    ("spec", "rate_rps", "cv"), [("poisson:50", 50, 1), ("gamma:50,4", 50, 4), ("gamma:20,.5", 20, 0.5)]
)
def test_gaps_have_the_rate_and_the_variation_asked_for(spec, rate_rps, cv):
    times = parse_arrivals(spec).times_s(4000, seed=0)
    gaps = np.diff(times)
    assert times[0] >= 0
    assert times[-1] < 4000
    assert (gaps >= 0).all()
    assert len(times) / 4000 == pytest.approx(rate_rps, rel=0.05)
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.05)


def test_one_seed_gives_one_sequence_and_a_longer_run_continues_it():
    arrivals = parse_arrivals("gamma:10,2")
    short, long = arrivals.times_s(30, seed=3), arrivals.times_s(90, seed=3)
    assert np.array_equal(short, long[: len(short)])
    assert not np.array_equal(short[:50], arrivals.times_s(30, seed=4)[:50])


@pytest.mark.parametrize(
    ("lines", "times_s"),
    [
        (["TIMESTAMP,Tokens", "2023-11-16 18:17:03.9799600,5", "2023-11-16 18:17:04.9799600,3"], [0.0, 1.0]),
        (["size,arrival", "9,12.5", "9,12.0", "9,20"], [0.0, 0.5, 8.0]),
        (["seconds", "100", "109.9", "110"], [0.0, 9.9]),
    ],
)
def test_a_trace_counts_from_its_first_arrival_in_order_and_ends_with_the_run(tmp_path, lines, times_s):
    (tmp_path / "trace.csv").write_text("\n".join(lines) + "\n")
    assert parse_arrivals(f"trace:{tmp_path / 'trace.csv'}").times_s(10, seed=0) == pytest.approx(times_s)


def test_a_trace_line_without_a_time_is_named(tmp_path):
    (tmp_path / "trace.csv").write_text("timestamp\n2024-01-01 00:00:00\nsoon\n")
    with pytest.raises(InputError, match=r"trace\.csv, line 3: timestamp is not a time"):
        parse_arrivals(f"trace:{tmp_path / 'trace.csv'}").times_s(10, seed=0)


@pytest.mark.parametrize(
    "spec", ["poisson", "poisson:0", "poisson:x", "gamma:5", "gamma:5,-1", "uniform:5", "poisson:inf"]
)
def test_other_specs_are_refused_with_the_forms_that_work(spec):
    with pytest.raises(InputError, match="poisson:RATE or gamma:RATE,CV"):
        parse_arrivals(spec)


def test_a_missing_trace_is_named():
    with pytest.raises(InputError, match=r"no such file: nowhere\.csv"):
        parse_arrivals("trace:nowhere.csv")
