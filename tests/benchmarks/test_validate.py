"""The simulator compared with a server: one whose behaviour is known, and a recorded run of the real one."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from elasticlm.benchmarks.queue_server import Server
from elasticlm.benchmarks.queue_simulation import simulate
from elasticlm.benchmarks.queue_traffic import OpenLoop
from elasticlm.benchmarks.simulator_agreement import calibrate
from elasticlm.benchmarks.summary import COLUMNS, summarise
from elasticlm.benchmarks.validate import main
from elasticlm.errors import InputError
from elasticlm.schedule.latency import LatencyTable
from elasticlm.schedule.policies import parse_policy

MEANS_MS = {100: 40.0, 50: 20.0, 10: 4.0}
ARM, BUDGET_MS = "slack:t=150,alpha=.6", 150.0


def test_two_capacities_give_the_factor_and_the_turnaround():
    table, turnaround_ms = calibrate(LatencyTable.from_means(MEANS_MS), 128, {"100": 1000 / 23, "10": 1000 / 5})
    assert turnaround_ms == pytest.approx(3)
    assert [table.mean_ms(level, 1, 128) for level in table.levels] == pytest.approx([20, 10, 2])


@pytest.mark.parametrize("capacity_rps", [{"100": 20.0}, {"100": 100.0, "10": 50.0}, {"100": 20.0, "10": 900.0}])
def test_capacities_that_no_such_server_has_are_refused(capacity_rps):
    with pytest.raises(InputError, match=r"--load|not this server's"):
        calibrate(LatencyTable.from_means(MEANS_MS), 128, capacity_rps)


@pytest.fixture
def run(tmp_path):
    """What a server that is exactly the simulator's would have written."""
    model, folder = tmp_path / "model", tmp_path / "gamma"
    model.mkdir()
    folder.mkdir()
    table = LatencyTable.from_means(MEANS_MS)
    table.write(model / "latency.csv")
    times, turnaround_ms = calibrate(table, 128, {"100": 1000 / 42, "10": 1000 / 6})
    arrivals_ms = np.cumsum(np.random.default_rng(0).gamma(1 / 16, 16 * 60, 800))
    served = simulate(parse_policy(ARM), times, Server(turnaround_ms=turnaround_ms, tokens=128),
                      OpenLoop(arrival_ms=arrivals_ms), decided_by=table)  # fmt: skip
    trace = pd.DataFrame({
        "arm": ARM, "t_s": served.arrival_ms / 1000, "users": 1, "queue_depth": served.queue_depth,
        "level": [("100", "50", "10")[place] for place in served.level], "latency_ms": served.latency_ms,
        "status": served.status, "query_id": "q", "quality": 1.0,
    })[COLUMNS]  # fmt: skip
    trace.to_csv(folder / "trace.csv", index=False)
    load = {"arrivals": "gamma:20,4", "capacity_rps": {"100": 1000 / 42, "10": 1000 / 6}}
    write_summary(folder, {"load": load, "arms": summarise(trace, [BUDGET_MS])})
    return ["--model", str(model), "--runs", str(folder), "--output", str(tmp_path / "validation.json")]


def write_summary(folder, summary):
    (folder / "summary.json").write_text(json.dumps(summary))


def test_a_server_that_does_as_simulated_agrees(run, tmp_path):
    assert main(run) == 0
    (compared,) = json.loads((tmp_path / "validation.json").read_text())["compared"]
    assert compared["requests"] == 800
    served, simulated = compared["within_budget"]
    assert served == simulated
    assert 0 < served <= 1
    assert sum(share for share, _ in compared["level_shares"].values()) == pytest.approx(1, abs=1e-3)


def test_a_server_that_does_otherwise_is_told_by_the_exit_code(run, tmp_path):
    file = tmp_path / "gamma" / "trace.csv"
    trace = pd.read_csv(file).assign(level="10")
    trace.to_csv(file, index=False)
    assert main(run) == 1
    (compared,) = json.loads((tmp_path / "validation.json").read_text())["compared"]
    assert compared["holds"] is False


def test_a_closed_loop_is_refused(run, tmp_path):
    summary = json.loads((tmp_path / "gamma" / "summary.json").read_text())
    write_summary(tmp_path / "gamma", summary | {"load": {"arrivals": None}})
    with pytest.raises(InputError, match="closed loop"):
        main(run)


RECORDED = Path(__file__).parents[1] / "data/server_run"
"""900 requests (Gamma, CV 4) at 0.6 of level 100's capacity: `elasticlm simulate` on two cores."""
OFF_WITHIN, OFF_SHARES = 8.0, 11.0
"""What the simulator is off by, in points: in bursts, frontend and driver take time from the worker."""


def test_the_simulator_is_as_close_to_a_recorded_run_as_it_was(tmp_path):
    output = tmp_path / "validation.json"
    assert main(["--model", str(RECORDED), "--runs", str(RECORDED / "gamma"), "--output", str(output)]) == 1
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
