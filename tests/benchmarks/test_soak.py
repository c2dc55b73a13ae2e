"""elasticlm.benchmarks.soak: what counts as a leak, and a short run against the real server."""

import json

import pandas as pd
import pytest
from archives import archive, servable

from elasticlm.benchmarks import soak, soak_run


def samples(process, **measures):
    """A sample every 5 s for 10 minutes; a measure is a function of the minutes, or a number."""
    rows = [{"t_s": 5.0 * i, "process": process} for i in range(1, 121)]
    for row in rows:
        for name, of in ({"memory_mib": 300.0, "files": 40, "threads": 20} | measures).items():
            row[name] = of(row["t_s"] / 60) if callable(of) else of
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("process", "measures", "leak"),
    [
        ("worker 1", {}, []),
        ("worker 1", {"memory_mib": lambda t: min(300, 100 + 200 * t)}, []),  # grows to its size, then no more
        ("worker 1", {"memory_mib": lambda t: 300 + 10 * t}, ["memory_mib"]),
        ("worker 1", {"files": lambda t: 40 + 3 * t}, ["files"]),
        ("worker 1", {"threads": lambda t: 20 + 2 * t}, ["threads"]),
        ("java 2", {"memory_mib": lambda t: 300 + 40 * t}, []),  # a heap that was not collected yet
        ("java 2", {"files": lambda t: 40 + 3 * t}, ["files"]),
    ],
)
def test_what_grows_after_the_first_third_is_a_leak(process, measures, leak):
    found = soak_run.growth(samples(process, **measures))
    assert [row["measure"] for row in found if row["leak"]] == leak


@pytest.mark.slow
@pytest.mark.end_to_end
def test_a_short_soak_of_the_real_server(tiny_artifact, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(soak_run, "SAMPLE_S", 1.0)
    monkeypatch.setattr(soak_run, "WAVE_S", 4.0)
    artifact = servable(tiny_artifact, tmp_path / "artifact", {100: 60.0, 50: 40.0, 10: 5.0})
    made = archive("mini", artifact, tmp_path, latency_budget_ms=200)
    soak.main(["--archive", str(made), "--minutes", "0.15", "--users", "4", "--output", str(tmp_path / "out")])
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["statuses"]["200"] > 50
    assert result["statuses"]["400"] > 0
    assert set(result["statuses"]) <= {"200", "400", "left"}
    assert {row["process"].split()[0] for row in result["processes"]} == {"java", "worker"}
    assert (tmp_path / "out/soak.png").read_bytes().startswith(b"\x89PNG")
    assert len(pd.read_csv(tmp_path / "out/soak.csv")) >= 10
