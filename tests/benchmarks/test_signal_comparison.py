"""elasticlm.benchmarks.signal_check: the true queue from what the driver saw, and the comparison."""

import numpy as np
import pandas as pd
import pytest

from elasticlm.benchmarks.drive import Drive
from elasticlm.benchmarks.signal_comparison import BACK_MS, compare, timings, waiting


def test_what_was_sent_and_not_taken_waits_behind_a_batch():
    sent, taken = np.arange(6) * 0.01, np.array([0.0, 0.045, 0.045, 0.06, 0.07, 0.08])  # 1 and 2 are one batch
    assert waiting(sent, taken).tolist() == [0, 2, 2, 2, 1, 0]


def test_a_handler_that_knows_everything_has_no_bias():
    sent = np.cumsum(np.tile([0.001, 0.002, 0.050], 30))
    taken, free = [], 0.0
    for t in sent:  # one worker, 15 ms a request
        free = max(t, free) + 0.015
        taken.append(free - 0.015)
    taken = np.array(taken)
    rows = pd.DataFrame({
        "t_s": sent, "latency_ms": (taken - sent) * 1e3 + 15 + BACK_MS, "status": 200,
        "queue_depth": waiting(sent, taken),
        "timing": [f"wait;dur={1e3 * w:.3f}, signal;dur=0.5, decide;dur=0.1, forward;dur=14.4" for w in taken - sent],
    })  # fmt: skip
    found = compare(Drive(rows, [], 0.0))
    assert found["correlation"] == pytest.approx(1)
    assert (found["bias"], found["requests"]) == (0, 90)
    assert abs(found["wait bias ms"]) < 0.1
    assert (found["signal p50 ms"], found["decide p99 ms"]) == (0.5, 0.1)
    assert compare(Drive(rows.assign(queue_depth=rows.queue_depth + 2), [], 0.0))["bias"] == 2


def test_a_stage_that_one_request_lacks_took_no_time():
    parsed = timings(pd.Series(["signal;dur=1.5", "signal;dur=1.0, search;dur=2.0"]))
    assert parsed["search"].tolist() == [0.0, 2.0]
