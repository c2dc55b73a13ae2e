"""The latency table: what each level costs on this machine, for so many rows of so many tokens."""

import csv
import itertools
import statistics
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from elasticlm.backend.onnx_runtime import is_exported
from elasticlm.errors import InputError
from elasticlm.files import new_file
from elasticlm.machine import machine
from elasticlm.model.folder import LATENCY_FILE
from elasticlm.model.structure import Level, level_name, parse_level

if TYPE_CHECKING:
    from elasticlm.model.elastic_model import ElasticModel

COLUMNS = [
    *("level", "rows", "tokens", "threads", "backend", "precision", "device"),
    *("mean_ms", "p50_ms", "p95_ms", "p99_ms", "runs"),
]
ROWS, TOKENS = (1, 8, 32), (16, 64, 128, 256)
COMPARED = ((1, 16), (8, 128))  # rows and tokens by which setups are compared
ANY_LENGTH = 512  # tokens of a table that does not depend on length
P99_RUNS = 1_000  # fewer runs have no 99th percentile


@dataclass(frozen=True, kw_only=True)
class Setup:
    """How a table was measured: one file may hold several."""

    threads: int = 1
    backend: str = "torch"
    precision: str = "fp32"
    device: str = "cpu"


@dataclass(frozen=True, kw_only=True)
class Cell:
    """Service times of one level on batches of ``rows`` sequences padded to ``tokens``, in ms."""

    level: Level
    rows: int
    tokens: int
    mean_ms: float
    p50_ms: float
    p95_ms: float
    p99_ms: float | None
    runs: int


class LatencyTable:
    """Service time of every level over a grid of (rows, tokens).

    Between grid points it is bilinear; above the grid, in proportion to rows x tokens; below it, the smallest cell's.

    >>> table = LatencyTable.from_means({50: 40.0, 10: 8.0})
    >>> table.mean_ms(50), table.mean_ms(10, rows=8)
    (40.0, 64.0)
    """

    def __init__(self, cells: Sequence[Cell], setup: Setup | None = None, notes: Sequence[str] = ()) -> None:
        if not cells:
            raise InputError("latency table: no cells")
        self.cells = sorted(cells, key=lambda cell: (-cell.level, cell.rows, cell.tokens))
        self.setup = setup or Setup()
        self.notes = tuple(notes)
        self.levels: tuple[Level, ...] = tuple(dict.fromkeys(cell.level for cell in self.cells))
        self.rows = tuple(sorted({cell.rows for cell in cells}))
        self.tokens = tuple(sorted({cell.tokens for cell in cells}))
        if len(cells) != len(self.levels) * len(self.rows) * len(self.tokens):
            raise InputError("latency table: every level needs one cell for each of the same rows and tokens")
        self._grids = {
            level: {name: self._grid(level, name) for name in ("mean_ms", "p95_ms")} for level in self.levels
        }

    @property
    def cpu(self) -> str | None:
        """The processor that it was measured on, as its notes say; None where they do not."""
        machines = (note.removeprefix("machine: ") for note in self.notes if note.startswith("machine: "))
        return next((found.rpartition(", ")[0] for found in machines), None)

    def _grid(self, level: Level, name: str) -> list[list[float]]:
        times = iter(getattr(cell, name) for cell in self.cells if cell.level == level)
        return [list(itertools.islice(times, len(self.tokens))) for _ in self.rows]

    def mean_ms(self, level: Level, rows: float = 1, tokens: float | None = None) -> float:
        """Mean service time t_k in ms. ``tokens`` None takes the shortest length of the table."""
        return self._look_up(level, "mean_ms", rows, tokens)

    def p95_ms(self, level: Level, rows: float = 1, tokens: float | None = None) -> float:
        """95th percentile of the service time in ms."""
        return self._look_up(level, "p95_ms", rows, tokens)

    def _look_up(self, level: Level, name: str, rows: float, tokens: float | None) -> float:
        if level not in self._grids:
            raise InputError(f"latency table: no level {level}, only {', '.join(map(level_name, self.levels))}; "
                             "measure it with `elasticlm profile`")  # fmt: skip
        grid = self._grids[level][name]
        i, j, row_share, row_factor = _locate(self.rows, rows)
        k, m, token_share, token_factor = _locate(self.tokens, self.tokens[0] if tokens is None else tokens)
        upper = grid[i][k] * (1 - token_share) + grid[i][m] * token_share
        lower = grid[j][k] * (1 - token_share) + grid[j][m] * token_share
        return (upper * (1 - row_share) + lower * row_share) * row_factor * token_factor

    def check_levels(self, levels: Sequence[Level]) -> None:
        """Raise InputError unless every one of ``levels`` was measured."""
        if missing := [level_name(level) for level in levels if level not in self._grids]:
            raise InputError(f"latency table: no row for level {', '.join(missing)}; run `elasticlm profile`")

    @classmethod
    def from_means(cls, means_ms: Mapping[Level, float]) -> "LatencyTable":
        """A table of one service time a level, whatever the length; rows in proportion."""
        return cls([Cell(level=level, rows=1, tokens=ANY_LENGTH, mean_ms=ms, p50_ms=ms, p95_ms=ms, p99_ms=None, runs=1)
                    for level, ms in means_ms.items()])  # fmt: skip

    @classmethod
    def read(cls, file: str | Path, *, backend: str | None = None, threads: int | None = None) -> "LatencyTable":
        """Read latency.csv: the fastest table of this backend and these threads (None: any). Raises InputError."""
        fitting = [table for table in read_tables(file)
                   if backend in (None, table.setup.backend) and threads in (None, table.setup.threads)]  # fmt: skip
        if not fitting:
            raise InputError(
                f"{file}: nothing measured for backend {backend or 'any'}, {threads or 'any number of'} threads"
            )
        return fastest(fitting)

    def write(self, file: str | Path) -> None:
        """Write into latency.csv, in place of what it held for the same setup; other setups stay."""
        others = [table for table in read_tables(file) if table.setup != self.setup] if Path(file).exists() else []
        with new_file(file) as temporary, open(temporary, "w", encoding="utf-8", newline="") as out:
            out.writelines(f"# {note}\n" for note in self.notes)
            writer = csv.DictWriter(out, COLUMNS, lineterminator="\n")
            writer.writeheader()
            for table in [self, *others]:
                for cell in table.cells:
                    times = {name: round(ms, 4) for name, ms in vars(cell).items() if name.endswith("_ms") and ms}
                    writer.writerow(vars(table.setup) | vars(cell) | times | {"level": level_name(cell.level)})


def read_tables(file: str | Path) -> list[LatencyTable]:
    """Read all tables of a latency.csv, one a setup, in the order of the file. Raises InputError with the line."""
    try:
        lines = Path(file).read_text(encoding="utf-8").splitlines()
    except OSError:
        raise InputError(f"{file}: no latency table; measure one with `elasticlm profile --model DIR`") from None
    notes = [line.removeprefix("#").strip() for line in lines if line.startswith("#")]
    numbered = [(number, line) for number, line in enumerate(lines, 1) if line.strip() and not line.startswith("#")]
    if not numbered or numbered[0][1].split(",") != COLUMNS:
        raise InputError(f"{file}: expected the columns {','.join(COLUMNS)}")
    by_setup: dict[Setup, list[Cell]] = {}
    for (number, _), row in zip(numbered[1:], csv.DictReader(line for _, line in numbered), strict=True):
        try:
            setup = Setup(threads=int(row["threads"]), backend=row["backend"], precision=row["precision"],
                          device=row["device"])  # fmt: skip
            cell = Cell(level=parse_level(row["level"]), rows=int(row["rows"]), tokens=int(row["tokens"]),
                        mean_ms=_positive(row["mean_ms"]), p50_ms=_positive(row["p50_ms"]),
                        p95_ms=_positive(row["p95_ms"]), p99_ms=_positive(row["p99_ms"]) if row["p99_ms"] else None,
                        runs=int(row["runs"]))  # fmt: skip
        except (TypeError, ValueError) as error:
            raise InputError(f"{file}, line {number}: {error}") from None
        by_setup.setdefault(setup, []).append(cell)
    try:
        return [LatencyTable(cells, setup, notes) for setup, cells in by_setup.items()]
    except InputError as error:
        raise InputError(f"{file}: {error}") from None


def fastest(tables: Sequence[LatencyTable]) -> LatencyTable:
    """Return the table with the shortest times: geometric mean over levels, short single texts and long batches."""

    def typical_ms(table: LatencyTable) -> float:
        return statistics.geometric_mean(
            table.mean_ms(level, rows, tokens) for level in table.levels for rows, tokens in COMPARED
        )

    return min(tables, key=typical_ms)


def choose_setup(
    artifact: Path, *, threads: int = 1, backend: str = "auto", precision: str = "auto"
) -> tuple[LatencyTable, Setup]:
    """Return the latency table of an artifact to decide by, and what will run.

    Of the setups that were measured with these threads, that are asked for and that this machine can run, the fastest;
    where there is none, PyTorch (or what is asked for) by the first table.
    """

    def runs_here(setup: Setup) -> bool:
        wanted = backend in ("auto", setup.backend) and precision in ("auto", setup.precision)
        there = setup.backend == "torch" or backend == "onnx" or is_exported(artifact, setup.precision)
        return wanted and there and setup.threads == threads and setup.device == "cpu"

    tables = read_tables(artifact / LATENCY_FILE)
    fitting = [table for table in tables if runs_here(table.setup)]
    if fitting:
        table = fastest(fitting)
        return table, table.setup
    asked = {"backend": backend, "precision": precision}
    return tables[0], Setup(threads=threads, **{name: value for name, value in asked.items() if value != "auto"})


def measure(
    model: "ElasticModel",
    *,
    levels: Sequence[Level] | None = None,
    rows: Sequence[int] = ROWS,
    tokens: Sequence[int] = TOKENS,
    threads: int = 1,
    seconds: float = 2.0,
    min_runs: int = 20,
    on_cell: Callable[[], None] = lambda: None,
) -> LatencyTable:
    """Measure the service time of every level: parsed request -> response object (tokenise, forward, convert).

    Levels take turns on the same batch, so that noise of the machine falls on all of them alike.

    Args:
        levels: None for all.
        rows, tokens: the grid; lengths above the model's limit are left out.
        threads: of PyTorch's intra-op pool.
        seconds, min_runs: a cell is timed until both are reached.
        on_cell: called after each cell, for progress.
    """
    levels = tuple(levels or model.levels)
    limit = model.config.max_tokens.of("pair" if model.config.task == "score" else "query")
    lengths = [length for length in tokens if length <= limit] or [limit]
    cells = []
    with _threads(threads):
        for count, length in itertools.product(rows, lengths):
            batch = batch_of(model, count, length)
            times: dict[Level, list[float]] = {level: [] for level in levels}
            for level in levels:
                _answer(model, *batch, level)  # warm-up
            while waiting := [k for k in levels if len(times[k]) < min_runs or sum(times[k]) < seconds * 1000]:
                for level in waiting:
                    start = time.perf_counter()
                    _answer(model, *batch, level)
                    times[level].append((time.perf_counter() - start) * 1000)
            for level in levels:
                cells.append(_cell(level, count, length, times[level]))
                on_cell()
    setup = Setup(threads=threads, backend=model.backend.name, precision=model.backend.precision,
                  device=model.backend.device)  # fmt: skip
    here = machine(("torch", "transformers"))
    notes = [f"machine: {here['cpu']}, {here['cores']} cores",
             f"versions: python {here['python']}, " + ", ".join(f"{k} {v}" for k, v in here["versions"].items()),
             f"date: {here['date']}"]  # fmt: skip
    return LatencyTable(cells, setup, notes)


def _answer(model: "ElasticModel", texts: list[str], seconds: list[str] | None, level: Level) -> list:
    """What the server does between a parsed request and the response object."""
    inputs = model.tokenize(texts) if seconds is None else model.tokenize_pairs(texts, seconds)
    return model.encode(inputs, level).tolist()


def batch_of(model: "ElasticModel", rows: int, tokens: int) -> tuple[list[str], list[str] | None]:
    """Texts, or for a reranker one query (an eighth of the tokens) with passages, that make a batch of rows x tokens.

    Of several rows the last is a token shorter: batches are padded, and runtimes may be faster where they are not.
    """
    padded = rows > 1
    if model.config.task != "score":
        return [text_of(model, tokens)] * (rows - padded) + [text_of(model, tokens - 1)] * padded, None
    query = max(3, tokens // 8)
    longest = tokens - query + 1  # they share a [CLS]
    passages = [text_of(model, longest)] * (rows - padded) + [text_of(model, longest - 1)] * padded
    return [text_of(model, query)] * rows, passages


def text_of(model: "ElasticModel", tokens: int) -> str:
    """A text of words of the model's own vocabulary that makes exactly so many tokens, special ones included."""
    tokenizer = model.tokenizer
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda entry: entry[1])
    words = [word for word, _ in vocabulary if word.isalpha() and word.islower()] or [tokenizer.unk_token]
    whole = [word for word in words[:4000:7] or words if len(tokenizer.tokenize(word)) == 1] or [tokenizer.unk_token]
    overhead = model.tokenize([""])["input_ids"].shape[1]
    return " ".join(itertools.islice(itertools.cycle(whole), max(1, tokens - overhead)))


def _cell(level: Level, rows: int, tokens: int, times: list[float]) -> Cell:
    p50, p95, p99 = np.percentile(times, [50, 95, 99]).tolist()
    return Cell(level=level, rows=rows, tokens=tokens, mean_ms=statistics.fmean(times), p50_ms=p50, p95_ms=p95,
                p99_ms=p99 if len(times) >= P99_RUNS else None, runs=len(times))  # fmt: skip


def _locate(grid: tuple[int, ...], value: float) -> tuple[int, int, float, float]:
    """Neighbours of a value on a grid, its share of the way between them, and the factor beyond the end."""
    if value <= grid[0]:
        return 0, 0, 0.0, 1.0
    if value >= grid[-1]:
        return len(grid) - 1, len(grid) - 1, 0.0, value / grid[-1]
    right = bisect_right(grid, value)
    return right - 1, right, (value - grid[right - 1]) / (grid[right] - grid[right - 1]), 1.0


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise ValueError(f"{text}: expected a time above 0 in ms")
    return value


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
