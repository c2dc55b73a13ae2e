"""elasticlm.benchmarks.engines: gates and ratios as tables, static engines, a short run."""

import json
import shutil
import sys

import numpy as np
import pandas as pd
import pytest
import torch

from elasticlm.backend import onnx_export
from elasticlm.benchmarks import engines, engines_memory, engines_run
from elasticlm.benchmarks.engines_memory import INT8, LARGEST, TEACHER, TORCH, WORKERS
from elasticlm.benchmarks.engines_report import (
    STOCKS,
    Cell,
    Gate,
    Results,
    find_gates,
)
from elasticlm.benchmarks.engines_timing import WHOLE, Engine, ratio, switching_cost, time_rounds
from elasticlm.errors import InputError
from elasticlm.model.elastic_model import ElasticModel

TEXTS = ["how does ice form", "what is the moon", "the wolf and the bear in the cold snow"]
FP32, OURS8 = Engine("50", "onnx"), Engine("50", "onnx", "int8")
OPENVINO = Engine("50", "openvino")
STOCK, UNFUSED = STOCKS


@pytest.fixture(scope="module")
def exported(tiny_artifact, tmp_path_factory):
    """The tiny artifact with graphs in both precisions."""
    folder = tmp_path_factory.mktemp("engines") / "tiny"
    shutil.copytree(tiny_artifact, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx_export, "LEAST_COSINE", 0.5)  # a tiny random model is no match for eight bits
        for precision in ("fp32", "int8"):
            onnx_export.export(ElasticModel.from_pretrained(folder), folder, precision, TEXTS)
    return folder


def results(levels=("50",)):
    cells = [
        Cell(shape=shape, level=level, engine=engine, precision=precision, median_ms=ms, p95_ms=2 * ms, runs=9,
             of_stock=ms / 2)
        for shape in ("1x16", "8x128")
        for level, engine, precision, ms in [(WHOLE, "onnxruntime", "int8", 2.0), ("50", "onnx", "int8", 1.0),
                                             ("50", "openvino", "fp32", 1.5)]
    ]  # fmt: skip
    return Results(
        model="m", teacher="t", threads=1, command="c", machine={"cpu": "C"}, levels=list(levels), cells=cells,
        gates=[Gate("a", 0.5, 1.0), Gate("b", 2.0)], memory={}, switching={}, missing={},
    )  # fmt: skip


def test_ratios_are_taken_within_a_round():
    noisy = [1.0, 10.0, 1.0, 3.0]
    times = {FP32: noisy, OPENVINO: [2 * ms for ms in noisy]}
    assert ratio(times, FP32, OPENVINO) == 0.5
    assert ratio({FP32: [1.0, 9.0, 3.0], OPENVINO: [2.0, 3.0, 1.0]}, FP32, OPENVINO) == 3.0  # medians give 1.5
    assert ratio(times, OURS8, OPENVINO) is None
    assert ratio(times, OPENVINO, OURS8) is None


def test_every_engine_runs_once_a_round_after_a_run_that_is_not_timed():
    called = []
    runs = {engine: lambda engine=engine: called.append(engine) for engine in (FP32, OURS8)}
    times = time_rounds(runs, seconds=0, least=3)
    assert [len(ms) for ms in times.values()] == [3, 3]
    assert called == [FP32, FP32, OURS8, OURS8, OURS8, OURS8, FP32, FP32, FP32, FP32, OURS8, OURS8]


def test_switching_is_told_from_staying(monkeypatch):
    now, last = [0.0], [None]

    def run(level):
        now[0] += 1.0 if level == last[0] else 1.5
        last[0] = level

    monkeypatch.setattr("elasticlm.benchmarks.engines_timing.time.perf_counter", lambda: now[0])
    assert switching_cost(run, (50, 10), seconds=0, pairs=3) == pytest.approx(1.5)
    assert switching_cost(lambda level: now.__setitem__(0, now[0] + 1), (50, 10), seconds=9, pairs=3) == pytest.approx(
        1.0
    )


@pytest.mark.parametrize(
    ("shape", "times", "expected"),
    [
        ("8x128", {OURS8: 6.5, STOCK: 10.0}, [("level 50: onnx int8 / whole teacher", 0.65, 0.65, True)]),
        ("8x128", {OURS8: 6.6, STOCK: 10.0}, [("level 50: onnx int8 / whole teacher", 0.66, 0.65, False)]),
        ("1x16", {OURS8: 6.6, STOCK: 10.0}, [("level 50: onnx int8 / whole teacher", 0.66, 0.75, True)]),
        ("1x16", {OURS8: 6.0, STOCK: 10.0, UNFUSED: 8.0}, [  # the faster of the teacher's graphs has the limit
            ("teacher, onnxruntime-plain int8", 0.75, 0.75, True),
            ("teacher, onnxruntime int8 (reported, no limit)", 0.6, None, True)]),
        ("8x16", {OURS8: 20.0, STOCK: 10.0}, []),  # a shape without gates
        ("1x16", {FP32: 3.0, OPENVINO: 2.0}, [("onnx fp32 / OpenVINO fp32", 1.5, 1.0, False)]),
        ("1x16", {FP32: 3.0, OURS8: 1.0, OPENVINO: 2.0}, [  # int8 is what we would serve; fp32 has no limit
            ("onnx int8 / OpenVINO fp32", 0.5, 1.0, True),
            ("onnx fp32 / OpenVINO fp32 (reported, no limit)", 1.5, None, True)]),
        ("1x16", {FP32: 1.0, OURS8: 3.0, OPENVINO: 2.0}, [
            ("onnx fp32 / OpenVINO fp32", 0.5, 1.0, True),
            ("onnx int8 / OpenVINO fp32 (reported, no limit)", 1.5, None, True)]),
        ("1x16", {FP32: 3.0, Engine("50", "compile"): 2.0}, [("onnx fp32 / torch.compile fp32", 1.5, 1.0, False)]),
        ("1x16", {FP32: 3.0, Engine("30", "openvino"): 2.0}, []),  # another level
    ],
)  # fmt: skip
def test_gates_of_time(shape, times, expected):
    gates = find_gates({shape: {engine: [ms] * 3 for engine, ms in times.items()}}, ["50"], {}, {})
    assert len(gates) == len(expected)
    for gate, (name, value, limit, ok) in zip(gates, expected, strict=True):
        assert name in gate.gate
        assert shape in gate.gate
        assert (gate.value, gate.limit, gate.ok) == (pytest.approx(value), limit, ok)


def test_gates_of_switching_and_memory():
    sizes = {TORCH: 104.0, LARGEST: 100.0, INT8: 60.0, TEACHER: 50.0}
    memory = {case: {"pss_mib": pss, "rss_mib": 0.0, "peak_rss_mib": 0.0} for case, pss in sizes.items()}
    gates = find_gates({}, ["50"], {"1x16": 1.06}, memory)
    assert [(pytest.approx(gate.value), gate.limit, gate.ok) for gate in gates] == [
        (1.06, 1.05, False), (1.04, 1.05, True), (1.2, 1.0, False)
    ]  # fmt: skip
    assert len(find_gates({}, ["50"], {}, {TORCH: memory[TORCH]})) == 0
    on_top = find_gates({}, ["50"], {}, memory, top=True)
    assert [gate.limit for gate in on_top] == [None, None], "the teacher has weights of its own, in fp32"


def test_gate_of_a_second_worker():
    sizes = {TORCH: 200.0, TORCH + WORKERS: 290.0}
    memory = {case: {"pss_mib": pss, "rss_mib": 0.0, "peak_rss_mib": 0.0} for case, pss in sizes.items()}
    (gate,) = find_gates({}, ["50"], {}, memory, layers_mib=100.0)
    assert (gate.value, gate.limit) == (0.9, 1.2)


def test_results_are_read_as_they_were_written(tmp_path):
    found = results()
    found.write(tmp_path)
    assert Results.read(tmp_path) == found
    assert (tmp_path / "engines.md").read_text().count("| 50 | 1 (0.50) |  | 1.5 |") == 2


@pytest.mark.slow
def test_memory_is_that_of_a_process_of_its_own(exported, tiny_bert, monkeypatch):
    monkeypatch.setattr(engines_memory, "KINDS", {INT8: "int8", "broken": "no such kind"})
    found, failed = engines_memory.measure(ElasticModel.from_pretrained(exported), exported, tiny_bert,
                                           precisions=("int8", "no such kind"), threads=1, repeats=1)  # fmt: skip
    assert 0.5 < found[INT8]["pss_mib"] <= found[INT8]["peak_rss_mib"] + 0.5 < 100
    assert "precision 'no such kind'" in failed["broken"]


def test_the_command_measures_writes_and_judges(exported, tiny_bert, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(engines_memory, "KINDS", {})
    monkeypatch.setitem(sys.modules, "openvino", None)  # not installed
    threads = torch.get_num_threads()
    arguments = ["--model", str(exported), "--teacher", str(tiny_bert), "--quick", "--shapes", "1x16,4x32",
                 "--engines", "torch,onnx,eager,onnxruntime,openvino", "--output", str(tmp_path / "out")]  # fmt: skip
    monkeypatch.setattr(engines_run, "QUICK", engines_run.Effort(seconds=0, rounds=5, switching_s=0, pairs=1))
    code = engines.main(arguments)
    torch.set_num_threads(threads)
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert code == int(not all(gate["ok"] for gate in result["gates"]))
    table = pd.read_csv(tmp_path / "out/engines.csv", dtype={"level": str})
    assert set(table["shape"]) == {"1x16", "4x32"}
    ours = table[table.engine.isin(["torch", "onnx"])]
    assert len(ours) == 2 * 3 * 3
    assert len(table) == len(ours) + 2 * 3 * 4  # of the teacher, 50 and 10: eager, ONNX Runtime's three
    assert (table.runs == 5).all()
    assert np.isfinite(table.median_ms).all()
    assert {reason.split(":")[0] for reason in result["missing"].values()} == {"ModuleNotFoundError"}
    assert set(result["missing"]) == {f"{level}: openvino fp32" for level in (WHOLE, "50", "10")}
    assert result["switching"].keys() == {"1x16"}
    stock = [gate["gate"] for gate in result["gates"] if "whole teacher" in gate["gate"] and gate["limit"]]
    assert [gate.split(":")[0] for gate in stock] == [f"1x16, level {level}" for level in (100, 50, 10)]
    assert Results.read(tmp_path / "out").to_json() == result
    assert (tmp_path / "out/engines.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(InputError, match="exists already"):
        engines.main(arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--engines", "eager"], "none of them is ours"),
        (["--engines", "onnx,tvm"], "'tvm'"),
        (["--shapes", "1x16,1x64"], "cannot make so many tokens"),
        (["--teacher", "nowhere/at-all"], "nowhere"),
    ],
)
def test_wrong_options_are_refused(exported, tiny_bert, tmp_path, change, message):
    given = ["--model", str(exported), "--teacher", str(tiny_bert), "--output", str(tmp_path / "out"), *change]
    with pytest.raises(InputError, match=message):
        engines.main(given)
    assert not (tmp_path / "out").exists()


def test_an_artifact_without_graphs_is_told_how_to_get_them(tiny_artifact, tiny_bert, tmp_path):
    with pytest.raises(InputError, match=r"elasticlm export --model .* --onnx fp32 int8"):
        engines.main(["--model", str(tiny_artifact), "--teacher", str(tiny_bert), "--output", str(tmp_path / "out")])
