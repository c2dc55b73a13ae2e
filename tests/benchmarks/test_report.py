"""The picture and the page: they exist, hold the figures, and can be drawn anew from the files beside them."""

import json
import re

import numpy as np
import pandas as pd
import pytest

from elasticlm.benchmarks.drive import read_rows
from elasticlm.benchmarks.report import main
from elasticlm.benchmarks.rush_report import write_report
from elasticlm.benchmarks.summary import COLUMNS, lead, summarise

ARMS = {"slack:t=100,alpha=.6": ["100", "50", "10"], "fixed:100": ["100"]}


@pytest.fixture
def trace():
    random = np.random.default_rng(0)
    rows = []
    for arm, levels in ARMS.items():
        for t_s in np.linspace(0, 9.9, 150):
            late = arm == "fixed:100" and t_s > 5
            rows.append((arm, t_s, int(t_s), 2, str(random.choice(levels)), 400.0 if late else 50.0, 200, "q", 0.5))
        rows.append((arm, 9.95, 10, None, None, 9000.0, 0, "q", None))  # never answered
    return pd.DataFrame(rows, columns=COLUMNS).astype({"queue_depth": "Int64", "level": "string"})


@pytest.fixture
def summary(trace):
    return {
        "measure": "RR@10",
        "machine": {"cpu": "a <CPU>", "cores": 2, "python": "3.11", "versions": {"torch": "2"}, "date": "2024-01-01"},
        "arms": summarise(trace, [100, 150]),
        "lead": lead(trace, [100, 150]),
        "workload": {"name": "query", "data": "pydoc", "split": "test", "archive": "mini.mar", "answers": "hits",
                     "different_requests": 7},
        "load": {"duration_s": 10.0, "users": 10, "spawn_rate": 1.0, "pause_s": [1.0, 3.0], "arrivals": None, "seed": 0,
                 "offered_rps": 5.0, "capacity_rps": {"100": 2.0, "10": 8.0}},
        "client_cpu": dict.fromkeys(ARMS, 0.05),
    }  # fmt: skip


def test_the_folder_holds_trace_summary_picture_and_page(tmp_path, trace, summary):
    write_report(tmp_path, trace, summary)
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    assert (tmp_path / "trace.csv").read_text().splitlines()[0] == ",".join(COLUMNS)
    pd.testing.assert_frame_equal(read_rows(tmp_path / "trace.csv"), trace, check_dtype=False, atol=1e-4)
    picture = (tmp_path / "rush.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    width, height = (int.from_bytes(picture[at : at + 4]) for at in (16, 20))
    assert width > 900
    assert height > 900


def test_the_page_says_the_figures_and_needs_no_other_file(tmp_path, trace, summary):
    write_report(tmp_path, trace, summary)
    page = (tmp_path / "index.html").read_text()
    for arm in ARMS:
        for judged in summary["arms"][arm]["budgets"].values():
            assert f"{judged['within_budget']:.1%}" in page
            assert f"{judged['effective_quality']:.3f}" in page
    (ahead,) = summary["lead"]["100"]["over"].values()
    assert "is ahead of <code>fixed:100</code> by {:+.3f}".format(ahead["difference"][0]) in page
    assert "a &lt;CPU&gt;" in page
    assert "2.5 times what level 100 can bear" in page
    assert set(re.findall(r'(?:src|href)="([^"]{0,21})', page)) == {"data:image/png;base64"}


def test_the_picture_shows_the_arms_data(tmp_path, trace, summary):
    write_report(tmp_path, trace, summary)
    before = (tmp_path / "rush.png").read_bytes()
    write_report(tmp_path, trace.assign(latency_ms=trace["latency_ms"] * 2), summary)
    assert (tmp_path / "rush.png").read_bytes() != before


def test_a_report_is_drawn_anew_from_its_files(tmp_path, trace, summary):
    write_report(tmp_path, trace, summary)
    page = (tmp_path / "index.html").read_text()
    for name in ("index.html", "rush.png"):
        (tmp_path / name).unlink()
    main([str(tmp_path)])
    assert (tmp_path / "index.html").read_text() == page
