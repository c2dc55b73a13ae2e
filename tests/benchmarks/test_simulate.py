"""The simulation as a command: a small rush through the real TorchServe, and what it refuses."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from archives import archive, pipeline, servable

from elasticlm.benchmarks import calibrate, rush_simulation
from elasticlm.benchmarks.calibrate import rush_users
from elasticlm.benchmarks.drive import DriverError, drive, read_rows
from elasticlm.benchmarks.served_archive import Archive
from elasticlm.benchmarks.simulate import main
from elasticlm.benchmarks.summary import COLUMNS, summarise
from elasticlm.errors import InputError
from elasticlm.handlers import archive as packing
from elasticlm.model.teacher import load_model
from elasticlm.retrieval.data_specs import load_corpus
from elasticlm.retrieval.passage_index import PassageIndex

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def index(tiny_bert, tiny_beir):
    corpus, encoder = load_corpus(f"beir:{tiny_beir}"), load_model(str(tiny_bert))
    vectors = encoder.embed(corpus.passages, kind="passage").numpy()
    return PassageIndex.build(vectors, corpus.ids, fingerprint=encoder.fingerprint(), corpus_sha256=corpus.sha256)


@pytest.fixture(scope="module")
def mar(tiny_artifact, index, tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    artifact = servable(tiny_artifact, folder / "artifact", {100: 4.0, 50: 3.0, 10: 2.0})
    return archive("tiny", artifact, folder, index=index)


@pytest.fixture
def command(mar, tiny_beir, tmp_path):
    return [
        "--archive",
        str(mar),
        "--data",
        f"beir:{tiny_beir}",
        "--output",
        str(tmp_path / "rush"),
        "--pause",
        ".1,.3",
    ]


@pytest.fixture
def own_signals():
    """The command answers SIGTERM in its own way; the test run keeps its own."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.slow
@pytest.mark.end_to_end
@pytest.mark.usefixtures("own_signals")
def test_a_rush_of_two_arms(command, index, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(calibrate, "CALIBRATION_S", 2.0)
    monkeypatch.setattr(calibrate, "SETTLING_S", 0.5)
    before = set(psutil.Process().children())  # other tests may have left a resource tracker
    assert main([*command, "--arms", "slack", "fixed:10", "--budgets", "400,600", "--duration", "4"]) == 0

    rush = tmp_path / "rush"
    summary, trace = json.loads((rush / "summary.json").read_text()), read_rows(rush / "trace.csv")
    assert list(summary["arms"]) == ["slack:t=400,alpha=.6", "slack:t=600,alpha=.6", "fixed:10"]
    assert list(trace) == COLUMNS
    assert summary["measure"] == "RR@10"
    assert summary["arms"] == summarise(trace, [400, 600])
    load = summary["load"]
    assert load["users"] == rush_users(load["capacity_rps"]["100"], load["capacity_rps"]["10"], (0.1, 0.3))
    assert load["spawn_rate"] == pytest.approx(load["users"] / (4 * 50 / 120), abs=1e-3)
    fixed, slack = trace[trace["arm"] == "fixed:10"], trace[trace["arm"] == "slack:t=400,alpha=.6"]
    assert set(fixed["level"].dropna()) == {"10"}
    assert "100" in set(slack["level"])
    for rows in (fixed, slack):
        assert (rows["status"] == 200).mean() > 0.9
        assert rows["users"].max() > 0.8 * load["users"]
        assert 0 < rows["quality"].mean() <= 1
    for name in ("rush.png", "index.html", "requests.jsonl"):
        assert (rush / name).stat().st_size > 100
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["arms"] == summary["arms"]
    assert set(psutil.Process().children()) <= before
    assert not list((tmp_path / "temporary").iterdir())


@pytest.fixture(scope="module")
def two_stage(tiny_artifact, index, tiny_beir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("two-stage")
    pairs = [(100, 50, 12, 0.6), (10, 10, 12, 0.5), (100, 10, 12, 0.4), (10, None, 12, 0.3)]
    options = pipeline(tiny_artifact, index, f"beir:{tiny_beir}", folder, {100: 4.0, 50: 3.0, 10: 2.0},
                       {100: 3.0, 50: 2.0, 10: 1.0}, pairs)  # fmt: skip
    packing.main([*options, "--name", "two", "--output", str(folder)])
    return folder / "two.mar"


@pytest.mark.slow
@pytest.mark.end_to_end
@pytest.mark.usefixtures("own_signals")
def test_a_pipelines_arms_are_pairs_and_its_hits_are_judged(command, two_stage, tmp_path):
    arms = ["--archive", str(two_stage), "--arms", "slack", "fixed:10+10", "fixed:10"]
    assert main([*command, *arms, "--budgets", "600", "--users", "2", "--duration", "3"]) == 0
    summary, trace = json.loads((tmp_path / "rush/summary.json").read_text()), read_rows(tmp_path / "rush/trace.csv")
    levels = {arm: set(rows["level"].dropna()) for arm, rows in trace.groupby("arm")}
    assert levels["fixed:10+10"] == {"10+10"}
    assert levels["fixed:10"] == {"10"}
    assert "100+50" in levels["slack:t=600,alpha=.6"]
    assert summary["workload"]["answers"] == "hits"
    assert all(0 < figures["quality"] <= 1 for figures in summary["arms"].values())


@pytest.mark.parametrize(
    ("arm", "served"),
    [
        ("deadline:t=212", (212.0, 22, {})),
        ("slack:t=424,alpha=.6", (424.0, 44, {})),
        ("fixed:50,t=5", (5.0, 1, {})),
        ("fixed:50", (100.0, rush_simulation.UNBOUNDED, {"late": "answer"})),
    ],
)
def test_an_arm_has_a_queue_for_its_budget_and_without_one_answers_everything(mar, tmp_path, arm, served):
    made = replace(Archive.unpack(mar, tmp_path / "archive"), job_queue_size=22, handler={"latency_budget_ms": 212})
    assert rush_simulation.serving_of(arm, made, [100.0, 200.0]) == served


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (["--arms", "fixed:100+10"], r"is not among the levels 100\+50, 10\+10, 10$"),  # 10+10 beats it
        (["--index", "somewhere"], "answers no embeddings"),
    ],
)
@pytest.mark.usefixtures("own_signals")
def test_what_a_pipeline_does_not_serve_is_refused(command, two_stage, changed, message):
    with pytest.raises(InputError, match=message):
        main([*command, "--archive", str(two_stage), "--users", "2", "--budgets", "400", *changed])


@pytest.mark.slow
@pytest.mark.end_to_end
@pytest.mark.usefixtures("own_signals")
def test_an_arm_that_fails_ends_the_run_and_what_was_finished_is_written(command, tmp_path, monkeypatch, capsys):
    def fails_later(*arguments, **options):
        if calls:
            raise DriverError("the driver died")
        calls.append(1)
        return drive(*arguments, **options)

    calls: list[int] = []
    monkeypatch.setattr(rush_simulation, "drive", fails_later)
    arms = ["--arms", "fixed:10", "fixed:50", "--budgets", "400", "--users", "2", "--duration", "2"]
    assert main([*command, *arms]) == 1
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert list(summary["arms"]) == ["fixed:10"]
    assert summary["unfinished"] == "[2/2] fixed:50: the driver died"
    assert (tmp_path / "rush" / "index.html").stat().st_size > 100


@pytest.mark.slow
@pytest.mark.end_to_end
def test_stopped_from_outside_it_stops_its_server(command, tmp_path):
    """SIGTERM while the first arm runs: no TorchServe stays behind, no half a result."""
    (tmp_path / "temporary").mkdir()
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "elasticlm.benchmarks.simulate",
            *command,
            "--arms",
            "fixed:10",
            "--users",
            "2",
            "--budgets",
            "400",
        ],
        cwd=ROOT,
        env=os.environ | {"TMPDIR": str(tmp_path / "temporary")},
        stdout=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 60
    while not (servers := [p for p in psutil.Process(process.pid).children(recursive=True) if p.name() == "java"]):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.terminate()
    assert process.wait(60) == 143
    assert not any(server.is_running() and server.status() != psutil.STATUS_ZOMBIE for server in servers)
    assert not list((tmp_path / "temporary").iterdir())
    assert not (tmp_path / "rush").exists()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (["--arms", "slack", "fixed:30"], "level 30 is not among the levels 100, 50, 10"),
        (["--arms", "slak"], "did you mean 'slack'"),
        (["--arms", "slack", "slack"], "duplicate arm"),
        (["--split", "summer"], "no split 'summer'"),
        (["--workload", "related"], "60 passages share a title .* at least 100"),
        (["--workload", "rerank:8"], "a model of task 'score'"),
        (["--arrivals", "poisson:x"], "poisson:RATE"),
        (["--archive", __file__], "not an archive made by"),
        (["--output", str(ROOT / "tests")], "exists already"),
    ],
)
@pytest.mark.usefixtures("own_signals")
def test_bad_input_is_refused_before_anything_starts(command, tmp_path, changed, message):
    with pytest.raises(InputError, match=message):
        main([*command, "--users", "2", "--budgets", "400", *changed])
    assert not (tmp_path / "rush").exists()


@pytest.mark.parametrize(
    "changed", [["--budgets", "500,250"], ["--pause", "3,1"], ["--users", "0"], ["--duration", "-1"]]
)
def test_bad_numbers_are_refused_with_what_is_expected(command, changed):
    with pytest.raises(InputError, match="expected"):
        main([*command, *changed])


@pytest.mark.parametrize(
    ("largest_rps", "smallest_rps", "users"),
    [(10, 100, 60), (10, 30, 48), (0.1, 1, 1)],
)
def test_a_rush_is_three_times_the_largest_levels_capacity_if_the_smallest_can_bear_it(
    largest_rps, smallest_rps, users
):
    assert rush_users(largest_rps, smallest_rps, pause_s=(1, 3)) == users
