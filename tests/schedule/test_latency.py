import dataclasses
import itertools

import pytest

from elasticlm import ElasticModel, InputError, LatencyTable
from elasticlm.machine import machine
from elasticlm.schedule import profiling
from elasticlm.schedule.latency import Cell, Setup, fastest, read_tables, select_table
from elasticlm.schedule.profiling import batch_of, measure


def cell(level, rows, tokens, ms):
    return Cell(level=level, rows=rows, tokens=tokens, mean_ms=ms, p50_ms=ms, p95_ms=2 * ms, p99_ms=None, runs=20)


@pytest.fixture
def table():
    grid = {(1, 16): 10, (1, 64): 30, (8, 16): 50, (8, 64): 200}
    return LatencyTable([cell(k, r, t, ms * k / 100) for k in (100, 10) for (r, t), ms in grid.items()])


@pytest.mark.parametrize(
    ("rows", "tokens", "ms"),
    [
        (1, 16, 10), (8, 64, 200),  # on the grid
        (1, 40, 20), (4.5, 16, 30), (4.5, 40, 72.5),  # bilinear inside it
        (16, 16, 100), (1, 128, 60), (16, 128, 800),  # in proportion above it
        (1, 3, 10), (1, None, 10), (0.5, 8, 10),  # the smallest cell below it
    ],
)  # fmt: skip
def test_service_times_are_looked_up_between_and_beyond_the_cells(table, rows, tokens, ms):
    assert table.mean_ms(100, rows, tokens) == pytest.approx(ms)
    assert table.p95_ms(10, rows, tokens) == pytest.approx(2 * ms / 10)


def test_a_level_without_a_row_is_refused(table):
    with pytest.raises(InputError, match="no level 50"):
        table.mean_ms(50)
    with pytest.raises(InputError, match="no row for level 50, 5"):
        table.check_levels([100, 50, 5])


def test_one_file_holds_a_table_for_each_setup(table, tmp_path):
    file = tmp_path / "latency.csv"
    table.write(file)
    LatencyTable([dataclasses.replace(c, mean_ms=1.5) for c in table.cells], Setup(threads=2), ["machine: m"]).write(
        file
    )
    assert LatencyTable.read(file, threads=1).mean_ms(100) == 10
    assert LatencyTable.read(file, threads=2).mean_ms(100) == 1.5
    table.write(file)  # replaces its own rows only
    assert [t.setup.threads for t in read_tables(file)] == [1, 2]
    with pytest.raises(InputError, match="nothing was measured for onnx"):
        LatencyTable.read(file, backend="onnx")


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda s: s.replace("mean_ms", "mean"), "expected the columns"),
        (lambda s: s.replace("100,1,16,1,torch,fp32,cpu,10", "100,1,16,1,torch,fp32,cpu,-10"), "line 2"),
        (lambda s: s.replace("100,1,16", "x,1,16"), "line 2"),
        (lambda s: "\n".join(s.splitlines()[:-1]), "every level needs one cell"),
        (lambda s: s.replace(",20\n", "\n", 1), "line 2"),
        (lambda s: "", "expected the columns"),
    ],
)
def test_broken_tables_are_refused_with_their_line(table, tmp_path, edit, message):
    file = tmp_path / "latency.csv"
    table.write(file)
    file.write_text(edit(file.read_text()))
    with pytest.raises(InputError, match=message):
        read_tables(file)


def test_a_missing_table_says_how_to_measure_one(tmp_path):
    with pytest.raises(InputError, match="elasticlm profile"):
        LatencyTable.read(tmp_path / "latency.csv")


def test_measured_tables_cover_the_grid_and_name_the_machine(tiny_artifact, tmp_path):
    model = ElasticModel.from_pretrained(tiny_artifact)
    lengths = []
    original = model.encode
    model.encode = lambda inputs, level: lengths.append(inputs["input_ids"].shape) or original(inputs, level)
    table = measure(model, rows=[1, 2], tokens=[8, 32, 500], seconds=0.05, min_runs=3)
    assert table.levels == (100, 50, 10)
    assert table.tokens == (8, 32)  # 500 is above the model's limit
    assert {tuple(shape) for shape in lengths} == {(1, 8), (1, 32), (2, 8), (2, 32)}
    assert all(c.runs >= 3 and 0 < c.p50_ms <= c.p95_ms and c.p99_ms is None for c in table.cells)
    table.write(tmp_path / "latency.csv")
    assert (tmp_path / "latency.csv").read_text().startswith("# machine: ")


@pytest.mark.parametrize("task", ["embed", "score"])
def test_batches_are_measured_at_their_rows_and_tokens_and_padded_as_real_ones(tiny_artifact, task):
    model = ElasticModel.from_pretrained(tiny_artifact)
    model = model if task == "embed" else model.with_head(task)
    for rows, tokens in ((1, 8), (2, 16), (3, 40)):
        texts, passages = batch_of(model, rows, tokens)
        inputs = model.tokenize(texts) if passages is None else model.tokenize_pairs(texts, passages)
        assert inputs["input_ids"].shape == (rows, tokens)
        assert inputs["attention_mask"].sum(1).tolist() == [tokens] * (rows - 1) + [tokens - (rows > 1)]


def test_the_fastest_table_is_faster_over_levels_and_shapes(table):
    slower = LatencyTable(
        [dataclasses.replace(c, mean_ms=c.mean_ms * (0.9 if c.level == 10 else 2)) for c in table.cells]
    )
    assert fastest([slower, table]) is table
    assert fastest([table]) is table


def test_the_table_that_is_asked_for_is_selected_by_one_rule(table):
    slow = LatencyTable([dataclasses.replace(c, mean_ms=2 * c.mean_ms) for c in table.cells], Setup(backend="onnx"))
    quick = LatencyTable([dataclasses.replace(c, mean_ms=c.mean_ms / 2) for c in table.cells],
                         Setup(backend="onnx", precision="int8", threads=2))  # fmt: skip
    tables = [table, slow, quick]
    assert select_table(tables) is quick
    assert select_table(tables, threads=1) is table
    assert select_table(tables, backend="onnx", precision="fp32") is slow
    assert select_table(tables, can_run=lambda setup: setup.precision == "fp32") is table
    assert select_table(tables, backend="onnx", threads=4) is None


def test_a_scaled_table_has_each_levels_own_factor_and_a_note(table):
    factors = {level: 1.0 + i for i, level in enumerate(table.levels)}
    scaled = table.scaled(factors, "rescaled")
    for level in table.levels:
        assert scaled.mean_ms(level, 2, 20) == pytest.approx(factors[level] * table.mean_ms(level, 2, 20))
        assert scaled.p95_ms(level) == pytest.approx(factors[level] * table.p95_ms(level))
    assert scaled.notes == (*table.notes, "rescaled")
    assert scaled.setup == table.setup


def test_a_table_says_which_instruction_sets_it_was_measured_with(tiny_artifact, tmp_path):
    model = ElasticModel.from_pretrained(tiny_artifact)
    measured = measure(model, levels=[10], rows=[1], tokens=[8], seconds=0, min_runs=1)
    measured.write(tmp_path / "latency.csv")
    assert LatencyTable.read(tmp_path / "latency.csv").instruction_sets == tuple(machine(())["instruction_sets"])


def test_measuring_one_setup_again_keeps_the_notes_of_the_others(table, tmp_path):
    file = tmp_path / "latency.csv"
    int8 = LatencyTable(
        table.cells, Setup(backend="onnx", precision="int8"), ["machine: A, 8 cores", "date: 2026-01-01"]
    )
    int8.write(file)
    bare = LatencyTable(table.cells, Setup(backend="onnx"))
    bare.write(file)
    LatencyTable(table.cells, Setup(), ["machine: B, 2 cores"]).write(file)
    by_setup = {found.setup: found for found in read_tables(file)}
    assert by_setup[int8.setup].notes == int8.notes
    assert by_setup[bare.setup].notes == ()
    assert by_setup[Setup()].cpu == "B"


@pytest.mark.parametrize("task", ["classify", "score"])
def test_pairs_are_measured_by_the_path_that_serves_them_up_to_their_own_limit(tiny_artifact, task):
    model = ElasticModel.from_pretrained(tiny_artifact).with_head(
        task, labels=["a", "b"] if task == "classify" else None
    )
    model.config.max_tokens = dataclasses.replace(model.config.max_tokens, query=12, pair=40)
    calls = []
    tokenise = model.tokenize_pairs
    model.tokenize_pairs = lambda *pairs: calls.append(pairs) or tokenise(*pairs)
    found = measure(model, levels=[10], rows=[1], seconds=0, min_runs=1)
    assert calls
    assert found.tokens[-1] == 40


def test_batches_of_too_many_tokens_are_not_run_but_scaled(tiny_artifact, monkeypatch):
    model = ElasticModel.from_pretrained(tiny_artifact)
    monkeypatch.setattr(profiling, "MOST_TOKENS", 40)
    cells = measure(model, levels=[10], rows=[1, 4, 8], tokens=[8, 32], seconds=0, min_runs=1).cells
    runs = {(cell.rows, cell.tokens): cell.runs for cell in cells}
    assert runs == {(1, 8): 1, (4, 8): 1, (8, 8): 0, (1, 32): 1, (4, 32): 0, (8, 32): 0}
    means = {(cell.rows, cell.tokens): cell.mean_ms for cell in cells}
    assert means[8, 8] == pytest.approx(2 * means[4, 8])
    assert means[8, 32] == pytest.approx(8 * means[1, 32])


def test_cells_of_long_runs_have_fewer(tiny_artifact, monkeypatch):
    model = ElasticModel.from_pretrained(tiny_artifact)
    clock = itertools.count()
    monkeypatch.setattr(profiling, "_answer", lambda *_: None)
    monkeypatch.setattr(profiling.time, "perf_counter", lambda: 5.0 * next(clock))
    (cell,) = measure(model, levels=[10], rows=[1], tokens=[8], seconds=2.0, min_runs=20).cells
    assert (cell.runs, cell.mean_ms) == (5, 5000.0), "20 s are over after 5 runs of 5 s"
    (cell,) = measure(model, levels=[10], rows=[1], tokens=[8], seconds=0.4, min_runs=20).cells
    assert cell.runs == 1, "the first run took all of the time"
