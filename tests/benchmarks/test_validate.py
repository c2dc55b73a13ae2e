"""The simulator compared with a server: one whose behaviour is known, and a recorded run of the real one."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from elasticlm.benchmarks.queue_server import Server
from elasticlm.benchmarks.queue_simulation import simulate
from elasticlm.benchmarks.queue_traffic import OpenLoop
from elasticlm.benchmarks.service_times import PairTimes, ServiceTimes
from elasticlm.benchmarks.simulator_agreement import calibrate, compare
from elasticlm.benchmarks.summary import COLUMNS, summarise
from elasticlm.benchmarks.validate import main
from elasticlm.errors import InputError
from elasticlm.schedule.cascade import MeasuredPair, PairTable
from elasticlm.schedule.latency import LatencyTable
from elasticlm.schedule.policies import parse_policy

MEANS_MS = {100: 40.0, 50: 20.0, 10: 4.0}
TIMES = ServiceTimes(LatencyTable.from_means(MEANS_MS))
SERVED = {"batch_size": 1, "workers": 1, "max_batch_delay_ms": 1.0, "overhead_ms": 5.0, "tokens": 128}
ARM, BUDGET_MS = "slack:t=150,alpha=.6", 150.0


def trace_of(served, arm, levels):
    return pd.DataFrame({
        "arm": arm, "t_s": served.arrival_ms / 1000, "users": 1, "queue_depth": served.queue_depth,
        "level": [levels[place] for place in served.level], "latency_ms": served.latency_ms,
        "status": served.status, "query_id": "q", "quality": 1.0,
    })[COLUMNS]  # fmt: skip


def bursty(count, mean_ms):
    return OpenLoop(arrival_ms=np.cumsum(np.random.default_rng(0).gamma(1 / 16, 16 * mean_ms, count)))


def test_the_speed_of_the_server_is_read_from_answers_in_a_row():
    server = Server(turnaround_ms=3, tokens=128)
    served = simulate(parse_policy(ARM), TIMES.scaled(0.5), server, bursty(800, 30), decided_by=TIMES)
    rows = trace_of(served, ARM, ("100", "50", "10"))
    assert calibrate(rows, TIMES, server) == pytest.approx((0.5, 3), abs=1e-3)
    with pytest.raises(InputError, match="fewer than two levels answered 10 requests in a row"):
        calibrate(rows[:5], TIMES, server)


@pytest.fixture
def run(tmp_path):
    """What a server that is exactly the simulator's would have written."""
    model, folder = tmp_path / "model", tmp_path / "gamma"
    model.mkdir()
    folder.mkdir()
    LatencyTable.from_means(MEANS_MS).write(model / "latency.csv")
    server = Server(tokens=128, queue_size=5, turnaround_ms=2)
    trace = trace_of(simulate(parse_policy(ARM), TIMES, server, bursty(800, 60)), ARM, ("100", "50", "10"))
    trace.to_csv(folder / "trace.csv", index=False)
    load = {"arrivals": "gamma:20,4", "ingress_ms": 0.0}
    write_summary(folder, {
        "load": load, "arms": summarise(trace, [BUDGET_MS]), "workload": {"name": "related"},
        "server": SERVED | {"queue_size": {ARM: 5}},
    })  # fmt: skip
    return ["--model", str(model), "--runs", str(folder), "--output", str(tmp_path / "validation.json")]


def write_summary(folder, summary):
    (folder / "summary.json").write_text(json.dumps(summary))


def test_a_server_that_does_as_simulated_agrees(run, tmp_path):
    assert main(run) == 0
    (compared,) = json.loads((tmp_path / "validation.json").read_text())["compared"]
    assert compared["requests"] == 800
    served, simulated = compared["within_budget"]
    assert served == pytest.approx(simulated, abs=0.005)  # from means, all draws are alike
    assert 0.5 < served < 1
    assert sum(share for share, _ in compared["level_shares"].values()) == pytest.approx(1, abs=1e-3)


def test_a_server_that_does_otherwise_is_told_by_the_exit_code(run, tmp_path):
    file = tmp_path / "gamma" / "trace.csv"
    trace = pd.read_csv(file)
    trace.assign(latency_ms=trace["latency_ms"] + BUDGET_MS).to_csv(file, index=False)
    assert main(run) == 1
    (compared,) = json.loads((tmp_path / "validation.json").read_text())["compared"]
    assert compared["holds"] is False


def test_a_closed_loop_is_refused(run, tmp_path):
    summary = json.loads((tmp_path / "gamma" / "summary.json").read_text())
    write_summary(tmp_path / "gamma", summary | {"load": {"arrivals": None}})
    with pytest.raises(InputError, match="closed loop"):
        main(run)


def test_pipelines_are_simulated_by_their_pairs_of_levels():
    pairs = [MeasuredPair(retriever=d, reranker=r, depth=8, quality=q, measure="RR@10")
             for d, r, q in ((50, 50, 0.7), (10, 10, 0.5))]  # fmt: skip
    retriever, reranker = (LatencyTable.from_means({50: 4 * ms, 10: ms}) for ms in (1.0, 2.0))
    table = PairTimes(PairTable(pairs, retriever, reranker, passage_tokens=64, max_tokens=128, search_ms=0.5))
    assert [table.mean_ms(levels) for levels in table.levels] == [68.5, 17.5]
    times, server = table.scaled(2), Server(tokens=20, turnaround_ms=2)
    assert [times.mean_ms(levels, 1, 20) for levels in times.levels] == pytest.approx([137, 35])
    found = simulate(parse_policy("deadline:t=800"), times, server, bursty(300, 200))
    trace = trace_of(found, "deadline:t=800", ("50+50", "10+10"))
    (compared,) = compare("run", trace, table, server, {"deadline:t=800": 100_000}, 800.0)
    assert compared.holds
    assert set(compared.level_shares) == {"50+50", "10+10"}


RECORDED = Path(__file__).parents[1] / "data/server_run"
"""900 requests (Gamma, CV 4) at 0.6 of level 100's capacity: `elasticlm simulate` on two cores."""
OFF_WITHIN, OFF_SHARES = 4.0, 6.0
"""What the simulator is off by at most, in points."""


def test_the_simulator_is_as_close_to_a_recorded_run_as_it_was(tmp_path):
    output = tmp_path / "validation.json"
    main(["--model", str(RECORDED), "--runs", str(RECORDED / "gamma"), "--output", str(output)])
    compared = json.loads(output.read_text())["compared"]
    assert [(each["arm"], each["requests"]) for each in compared] == [
        ("deadline:t=212", 900),
        ("slack:t=212,alpha=.6", 900),
    ]
    for each in compared:
        served, simulated = each["within_budget"]
        assert 0 <= 100 * (simulated - served) <= OFF_WITHIN
        assert all(100 * abs(there - here) <= OFF_SHARES for there, here in each["level_shares"].values())
    assert compared[0]["within_budget"] > compared[1]["within_budget"]  # both say that deadline does better
