import dataclasses

import pytest

from elasticlm import ElasticModel, InputError, LatencyTable
from elasticlm.schedule.latency import Cell, Setup, fastest, read_tables
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
    table = measure(model, rows=[1, 2], tokens=[8, 32, 500], seconds=0.01, min_runs=3)
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
