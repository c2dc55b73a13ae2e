"""elasticlm policies end to end on a small table: its files, its table, its recommendation, its refusals."""

import json

import numpy as np
import pandas as pd
import pytest
from archives import archive, corpus_of_passages, index_of, pipeline, servable

from elasticlm import command
from elasticlm.benchmarks import policy_command as policies
from elasticlm.benchmarks.arrivals import busiest_window, open_arrivals_s
from elasticlm.benchmarks.summary import COLUMNS, summarise
from elasticlm.errors import InputError
from elasticlm.handlers.archive import main as pack_archive
from elasticlm.schedule.latency import Cell, LatencyTable

MEANS = {100: 20.0, 50: 10.0, 10: 3.0}
QUALITY = "100=.9,50=.8,10=.6"


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with `model`, which has a latency table alone, and `trace.csv`: 40 arrivals, the last 20 in a burst."""
    (tmp_path / "model").mkdir()
    LatencyTable([
        Cell(level=level, rows=rows, tokens=16, mean_ms=ms * rows**0.5, p50_ms=ms * rows**0.5,
             p95_ms=1.1 * ms * rows**0.5, p99_ms=None, runs=100)
        for level, ms in MEANS.items() for rows in (1, 8)
    ]).write(tmp_path / "model/latency.csv")  # fmt: skip
    times_s = [*range(20), *(30 + 0.01 * i for i in range(20))]
    (tmp_path / "trace.csv").write_text("t_s\n" + "".join(f"{time_s}\n" for time_s in times_s))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_quality(place, values):
    figures = {"metrics": {level: {"RR@10": value, "R@5": 1.0} for level, value in values.items()}}
    (place / "model/quality.json").write_text(json.dumps({"pydoc#test": figures}))


def simulated(words, capsys):
    policies.main([*words.split(), "--model", "model", "--output", "out", "--overwrite"])
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_trace_summary_picture_and_table_end_to_end(place, capsys):
    write_quality(place, {"100": 0.9, "50": 0.8, "10": 0.6, "teacher": 0.91})
    policies.main(["--model", "model", "--arrivals", "trace:trace.csv", "--policies", "slack:t=60,alpha=.6",
                   "queue:t=60", "fixed:100", "--output", "out"])  # fmt: skip
    out = capsys.readouterr().out.splitlines()
    trace = pd.read_csv("out/trace.csv", dtype={"level": str})
    summary = json.loads((place / "out/summary.json").read_text())
    assert trace.columns.tolist() == COLUMNS
    assert len(trace) == 3 * 40
    assert (place / "out/policies.png").read_bytes().startswith(b"\x89PNG")
    figures = summarise(trace, [60])
    for arm, told in summary["arms"].items():
        assert {key: told[key] for key in figures[arm]} == figures[arm]
    assert list(summary["arms"]) == ["slack:t=60,alpha=.6", "queue:t=60", "fixed:100"]
    assert summary["measure"] == "RR@10 on pydoc#test"
    assert trace.groupby("level")["quality"].unique().map(list).to_dict() == {"100": [0.9], "50": [0.8], "10": [0.6]}
    bound = summary["arrivals"]["trace:trace.csv"]["bound"]["60"]
    for told in summary["arms"].values():
        assert told["budgets"]["60"]["effective_quality"] <= bound["effective_quality"] <= 0.9
        assert told["budgets"]["60"]["within_budget"] <= bound["within_budget"]
    assert json.loads(out[-1])["arms"] == summary["arms"]
    assert out[0].split()[:2] == ["arrivals", "policy"]
    assert "(bound)" in out[4]


def test_several_arrivals_stand_side_by_side(place, capsys):
    words = f"--arrivals poisson:30 rush:20 --budget 60 --requests 50 --duration 10 --quality {QUALITY}"
    summary = simulated(words, capsys)
    names = ["deadline:t=60", "slack:t=60,alpha=.6", "queue:t=60", "fixed:100", "fixed:10"]
    assert list(summary["arms"]) == [f"{name} on {spec}" for spec in ("poisson:30", "rush:20") for name in names]
    assert summary["arms"]["fixed:10 on poisson:30"]["requests"] == 50
    assert summary["arrivals"]["rush:20"]["bound"] is None
    assert summary["arrivals"]["rush:20"]["offered_rps"] == 10
    trace = pd.read_csv("out/trace.csv")
    rush = trace[trace["arm"] == "fixed:10 on rush:20"]
    assert rush["users"].max() == 20
    assert rush["t_s"].max() < 10


def test_equal_seeds_give_equal_traces(place, capsys):
    traces = []
    for seed in (5, 5, 6):
        simulated(f"--arrivals gamma:30,2 --budget 60 --requests 50 --quality {QUALITY} --seed {seed}", capsys)
        traces.append((place / "out/trace.csv").read_text())
    assert traces[0] == traces[1] != traces[2]


def test_every_policy_is_judged_by_every_budget(place, capsys):
    summary = simulated(f"--arrivals poisson:30 --policies queue:t=40 queue:t=80 --budget 60 --quality {QUALITY}",
                        capsys)  # fmt: skip
    assert [list(told["budgets"]) for told in summary["arms"].values()] == [["40", "60", "80"]] * 2
    assert summary["budget_ms"] == 60


def test_load_scales_time_to_a_share_of_the_largest_levels_capacity(place, capsys):
    for load, spec in ((0.5, "poisson:1000"), (2, "trace:trace.csv")):
        summary = simulated(
            f"--arrivals {spec} --load {load} --budget 60 --turnaround-ms 5 --quality {QUALITY}", capsys
        )
        told = summary["arrivals"][spec]
        assert told["capacity_rps"] == 40  # 20 ms and 5 ms
        assert told["load"] == pytest.approx(load)
        trace = pd.read_csv("out/trace.csv")
        times_s = trace[trace["arm"] == "fixed:100"]["t_s"]
        assert (len(times_s) - 1) / (times_s.max() - times_s.min()) == pytest.approx(40 * load, rel=0.001)


def test_capacity_counts_batches_and_workers(place, capsys):
    words = f"--arrivals poisson:10 --budget 90 --batch-size 8 --workers 2 --turnaround-ms 0 --quality {QUALITY}"
    told = simulated(words, capsys)["arrivals"]["poisson:10"]
    assert told["capacity_rps"] == pytest.approx(2 * 8 / (0.020 * 8**0.5), abs=0.001)
    assert told["bound"] is None


def test_the_busiest_window_of_a_trace_is_taken(place):
    assert open_arrivals_s("trace:trace.csv", 20, 0) == pytest.approx(np.arange(20) * 0.01)
    assert open_arrivals_s("trace:trace.csv", 3000, 0)[[0, -1]] == pytest.approx([0, 30.19])
    assert busiest_window(np.array([0.0, 5.0, 6.0, 6.5, 9.0]), 3).tolist() == [0.0, 1.0, 1.5]


@pytest.mark.parametrize("spec", ["poisson:40", "gamma:40,4"])
def test_of_a_renewal_process_the_first_requests_are_taken(spec):
    short, long = open_arrivals_s(spec, 100, seed=2), open_arrivals_s(spec, 1000, seed=2)
    assert len(short) == 100
    assert np.array_equal(short, long[:100])


def test_unknown_quality_is_said_and_never_counted_as_nothing(place, capsys):
    policies.main(["--model", "model", "--arrivals", "poisson:20", "--budget", "60", "--output", "out"])
    said = capsys.readouterr()
    summary = json.loads(said.out.splitlines()[-1])
    assert "quality is unknown" in said.err
    assert "unknown" in said.out.splitlines()[1]
    for told in summary["arms"].values():
        assert (told["quality"], told["budgets"]["60"]["effective_quality"]) == (None, None)
        assert told["budgets"]["60"]["within_budget"] > 0
    bound = summary["arrivals"]["poisson:20"]["bound"]["60"]
    assert bound["effective_quality"] is None
    assert bound["within_budget"] > 0
    assert pd.read_csv("out/trace.csv")["quality"].isna().all()


def test_levels_and_measures_can_be_chosen(place, capsys):
    write_quality(place, {"100": 0.9, "50": 0.8, "10": 0.6})
    summary = simulated("--arrivals poisson:90 --budget 60 --levels 50,10 --measure R@5", capsys)
    assert summary["levels"] == ["50", "10"]
    assert list(summary["arms"])[3:] == ["fixed:50", "fixed:10"]
    assert summary["measure"] == "R@5 on pydoc#test"
    assert {told["quality"] for told in summary["arms"].values()} == {1.0}


def test_the_recommendation_is_the_best_of_what_was_tried(place, capsys):
    summary = simulated(f"--arrivals gamma:60,3 --budget 60 --requests 300 --quality {QUALITY} --recommend", capsys)
    told = summary["recommended"]["gamma:60,3"]
    sweep = [(row["workers"], row["batch size"]) for row in told["tried"] if row["levels"] == "100,50,10"]
    counts = sorted({count for count, _ in sweep})
    assert counts == [1, 2, 4, 8][: len(counts)]  # no more workers than are needed
    assert sorted(sweep) == sorted((count, size) for count in counts for size in (1, 2, 4, 8))
    assert told["best"]["workers"] == counts[-1]
    assert {row["levels"] for row in told["tried"]} >= {"50,10", "100,10", "100,50"}
    assert all(row["queue size"] >= 1 for row in told["tried"])
    same = (told["best"]["levels"], told["best"]["workers"])
    tried = [row for row in told["tried"] if (row["levels"], row["workers"]) == same]
    enough = [row["effective"] for row in tried if row["in time %"] >= 99]
    if told["enough_in_time"]:
        assert told["best"]["effective"] == max(enough)
    else:
        assert not enough
        assert told["best"]["in time %"] == max(row["in time %"] for row in tried)


def test_an_archive_brings_its_times_quality_budget_and_batches(tiny_artifact, tmp_path, capsys):
    artifact = servable(tiny_artifact, tmp_path / "artifact", MEANS)
    figures = {level: {"RR@10": value} for level, value in (("100", 0.9), ("50", 0.8), ("10", 0.6))}
    (artifact / "quality.json").write_text(json.dumps({"pydoc#test": {"metrics": figures}}))
    mar = archive("mini", artifact, tmp_path, latency_budget_ms=60.0)
    words = ["--archive", str(mar), "--arrivals", "poisson:30", "--requests", "50"]
    policies.main([*words, "--output", str(tmp_path / "out")])
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert list(summary["arms"]) == ["deadline:t=60", "slack:t=60,alpha=.6", "queue:t=60", "fixed:100", "fixed:10"]
    assert summary["measure"] == "RR@10 on pydoc#test"
    assert summary["server"]["batch_size"] == 1
    policies.main([*words, "--budget", "80", "--batch-size", "4", "--output", str(tmp_path / "other")])
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert summary["budget_ms"] == 80
    assert summary["server"]["batch_size"] == 4


@pytest.fixture(scope="module")
def two_stages(tiny_artifact, tiny_bert, tmp_path_factory):
    """Pairs that take 65, 45 and 5 ms, and the retriever alone, 1 ms."""
    parts = tmp_path_factory.mktemp("two-stages")
    index, data = index_of(tiny_bert), corpus_of_passages(parts / "corpus")
    pairs = [(100, 100, 4, 0.7), (100, 50, 4, 0.6), (10, 10, 4, 0.5), (10, None, 4, 0.3), (100, 10, 4, 0.4)]
    times = {100: 5.0, 50: 3.0, 10: 1.0}, {100: 15.0, 50: 10.0, 10: 1.0}
    pack_archive([*pipeline(tiny_artifact, index, data, parts, *times, pairs), "--name", "two", "--output", str(parts),
                  "--policy", "slack:t=200,alpha=.5"])  # fmt: skip
    return str(parts / "two.mar")


def test_a_pipelines_pairs_are_simulated_and_recommended_for(two_stages, tmp_path, capsys):
    out = str(tmp_path / "out")
    policies.main(["--archive", two_stages, "--arrivals", "poisson:40", "--requests", "200", "--recommend",
                   "--policies", "slack", "fixed:100+100", "fixed:10", "--output", out])  # fmt: skip
    lines = capsys.readouterr().out.splitlines()
    summary = json.loads(lines[-1])
    assert summary["levels"] == ["100+100", "100+50", "10+10", "10"]  # 100+10 is slower than 10+10, and worse
    assert summary["measure"] == "RR@10 of pairs.json"
    assert summary["budget_ms"] == 200
    arms = summary["arms"]
    assert arms["fixed:100+100"]["quality"] == 0.7
    assert 0.3 < arms["slack:t=200,alpha=.6"]["quality"] < 0.7
    assert arms["fixed:100+100"]["p50_ms"] > 60
    assert arms["fixed:10"]["p50_ms"] < 10
    assert summary["recommended"]["poisson:40"]["best"]["effective"] >= arms["fixed:10"]["quality"]
    assert any("all but 100+100" in line for line in lines)
    assert pd.read_csv(f"{out}/trace.csv")["level"].isin(summary["levels"]).all()


def test_of_a_pipeline_pairs_are_chosen_and_judged_by_name(two_stages, tmp_path, capsys):
    words = ["--archive", two_stages, "--arrivals", "poisson:40", "--requests", "50", "--output", str(tmp_path / "out")]
    policies.main([*words, "--levels", "100+50,10", "--quality", "100+50=.9,10=.1"])
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert summary["levels"] == ["100+50", "10"]
    assert summary["arms"]["fixed:100+50"]["quality"] == 0.9
    for wrong, message in ((["--levels", "100+30"], "100\\+30 is not among"), (["--measure", "AP"], "pairs.json")):
        with pytest.raises(InputError, match=message):
            policies.main([*words[:-1], str(tmp_path / "no"), *wrong])
    assert not (tmp_path / "no").exists()


def test_a_quiet_server_is_told_to_keep_all_levels_and_a_drowned_one_the_share_in_time(place, capsys):
    quiet = simulated(f"--arrivals poisson:.5 --budget 60 --requests 100 --quality {QUALITY} --recommend", capsys)
    best = quiet["recommended"]["poisson:.5"]
    assert (best["best"]["levels"], best["best"]["effective"], best["enough_in_time"]) == ("100,50,10", 0.9, True)
    words = f"--arrivals poisson:50000 --budget 30 --requests 300 --quality {QUALITY} --recommend"
    policies.main([*words.split(), "--model", "model", "--output", "out", "--overwrite"])
    out = capsys.readouterr().out.splitlines()
    drowned = json.loads(out[-1])["recommended"]["poisson:50000"]
    assert not drowned["enough_in_time"]
    assert drowned["best"]["workers"] == 8
    assert "nothing reached 99%" in out[-2]


def broken_table(place):
    file = place / "model/latency.csv"
    file.write_text(file.read_text() + "30,1,x,1,torch,fp32,cpu,1,1,1,,9\n")


def no_table(place):
    (place / "model/latency.csv").unlink()


def foreign_quality(place):
    (place / "model/quality.json").write_text("[1]")


def quality_of_other_levels(place):
    write_quality(place, {"100": 0.9, "50": 0.8})


def good_quality(place):
    write_quality(place, {"100": 0.9, "50": 0.8, "10": 0.6})


def empty_trace(place):
    (place / "trace.csv").write_text("t_s\n")


def binary_trace(place):
    (place / "trace.csv").write_bytes(bytes(range(128, 256)))


def one_moment(place):
    (place / "trace.csv").write_text("t_s\n3\n3\n")


def occupied(place):
    (place / "out").mkdir()
    (place / "out/kept.txt").write_text("kept")


PLAIN = "--arrivals poisson:20 --budget 60"
TRACE = "--arrivals trace:trace.csv --budget 60"


@pytest.mark.parametrize(
    ("spoil", "words", "message"),
    [
        (no_table, PLAIN, "latency.csv: no latency table"),
        (broken_table, PLAIN, "latency.csv, line 8"),
        (foreign_quality, PLAIN, "quality.json: not what"),
        (quality_of_other_levels, PLAIN, "quality.json: nothing for '10'"),
        (good_quality, PLAIN + " --measure MAP", "--measure MAP: .*holds RR@10, R@5"),
        (good_quality, PLAIN + " --judged-on x#dev", "holds pydoc#test"),
        (None, PLAIN + " --quality 100=.9", "--quality: nothing for level 50, 10"),
        (None, PLAIN + " --quality 100=good", "expected LEVEL=VALUE"),
        (None, PLAIN + " --recommend", "--recommend needs the quality"),
        (None, PLAIN + " --levels 100,30", "no row for level 30"),
        (None, PLAIN + " --policies fixed:30", "policy fixed:30: level 30 is not among the levels 100, 50, 10"),
        (None, PLAIN + " --policies slak", "did you mean 'slack'"),
        (None, PLAIN + " --policies slack slack:t=60", "duplicate policy slack"),
        (None, PLAIN + " --budget -1", "expected a number above 0"),
        (None, PLAIN + " --batch-size 0", "expected a whole number of 1 or more"),
        (None, PLAIN + " --max-batch-delay-ms 0", "expected a number above 0"),
        (None, "--arrivals poisson:20 --policies fixed:50", "no latency budget"),
        (None, "--arrivals poisson:20 --policies slack", "needs a budget"),
        (None, "--arrivals poison:20 --budget 60", "expected trace:FILE.csv.*or rush:USERS"),
        (None, "--arrivals poisson:20 poisson:20 --budget 60", "duplicate arrivals"),
        (None, "--arrivals trace:nowhere.csv --budget 60", "nowhere.csv"),
        (None, "--arrivals rush:0 --budget 60", "rush:USERS, a whole number above 0"),
        (None, "--arrivals rush:9 --budget 60 --load .5", "--load goes with open loops alone"),
        (empty_trace, TRACE, "no arrival in it"),
        (binary_trace, TRACE, "not a CSV file of arrivals"),
        (one_moment, TRACE + " --load .5", "two different times"),
        (occupied, PLAIN, "exists already"),
    ],
)
def test_bad_input_ends_with_one_line_and_code_2(place, capsys, spoil, words, message):
    if spoil:
        spoil(place)
    before = sorted(place.rglob("*"))
    with pytest.raises(SystemExit) as end:
        command.run(policies.main, [*words.split(), "--model", "model", "--output", "out"])
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert end.value.code == 2
    with pytest.raises(InputError, match=message):
        raise InputError(error)
    assert "error: " in error
    assert sorted(place.rglob("*")) == before
