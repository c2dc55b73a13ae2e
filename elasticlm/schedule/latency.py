"""The latency table: the service time of each level on one machine, by rows and tokens of a batch (latency.csv).

The file has one line per cell. Comment lines say on which machine and when cells were measured; they apply to the cells
after them, up to the next comment lines, because one file may hold the tables of several setups.
"""

import csv
import itertools
import statistics
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from elasticlm.errors import InputError
from elasticlm.files import lock, new_file
from elasticlm.machine import machine
from elasticlm.model.folder import LATENCY_FILE
from elasticlm.model.structure import Level, level_name, parse_level
from elasticlm.schedule.quantiles import quantiles

COLUMNS = [
    *("level", "rows", "tokens", "threads", "backend", "precision", "device"),
    *("mean_ms", "p50_ms", "p95_ms", "p99_ms", "runs"),
]
ROWS, TOKENS = (1, 8, 32), (16, 64, 128, 256)
COMPARED = ((1, 16), (8, 128))  # the cells (rows, tokens) on which setups are compared
INSTRUCTION_SETS = "instruction sets: "  # prefix of a note
ANY_LENGTH = 512  # tokens of a table that does not depend on length
ANY = "auto"  # any backend or precision: the one with the shortest times is chosen


@dataclass(frozen=True, kw_only=True)
class Setup:
    """The setup in which a table was measured; one file may hold tables of several setups."""

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

    Between grid points, times are interpolated bilinearly. Above the grid, they grow in proportion to rows and tokens.
    Below the grid, the time of the smallest cell applies.

    Examples:
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
        """The processor on which the table was measured, according to its notes; None if they do not say."""
        machine = self._note("machine: ")
        return None if machine is None else machine.rpartition(", ")[0]

    @property
    def instruction_sets(self) -> tuple[str, ...] | None:
        """Its instruction sets (see elasticlm.machine), according to the notes; None if they do not say."""
        listed = self._note(INSTRUCTION_SETS)
        return None if listed is None else tuple(listed.split())

    def differences_from(self, here: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
        """Return in what another machine (see elasticlm.machine.machine) differs from the table's: (table's, other's).

        What the notes do not say is taken to be equal.
        """
        compared = {
            "CPU": (self.cpu, here["cpu"]),
            "instruction sets": (self._note(INSTRUCTION_SETS), _listed(here["instruction_sets"])),
        }
        return {name: (then, now) for name, (then, now) in compared.items() if then not in (None, now)}

    def _note(self, prefix: str) -> str | None:
        return next((note.removeprefix(prefix) for note in self.notes if note.startswith(prefix)), None)

    def scaled(self, factors: Mapping[Level, float], note: str | None = None) -> "LatencyTable":
        """Return a table in which each level's times are multiplied by its factor, with an additional note."""

        def times(cell: Cell) -> dict[str, Any]:
            return {name: ms * factors[cell.level] for name, ms in vars(cell).items() if name.endswith("_ms") and ms}

        cells = [replace(cell, **times(cell)) for cell in self.cells]
        return LatencyTable(cells, self.setup, (*self.notes, *([note] if note else [])))

    def _grid(self, level: Level, name: str) -> list[list[float]]:
        times = iter(getattr(cell, name) for cell in self.cells if cell.level == level)
        return [list(itertools.islice(times, len(self.tokens))) for _ in self.rows]

    def mean_ms(self, level: Level, rows: float = 1, tokens: float | None = None) -> float:
        """Return the mean service time t_k in ms. If ``tokens`` is None, the shortest length of the table applies."""
        return self._look_up(level, "mean_ms", rows, tokens)

    def p95_ms(self, level: Level, rows: float = 1, tokens: float | None = None) -> float:
        """Return the 95th percentile of the service time in ms."""
        return self._look_up(level, "p95_ms", rows, tokens)

    def quantiles_ms(self, level: Level, rows: float = 1, tokens: float | None = None) -> list[float]:
        """Return the quantile function of the service time in ms (see elasticlm.schedule.quantiles).

        It has the shape of the nearest cell and the mean of the table at (rows, tokens).
        """
        length = self.tokens[0] if tokens is None else tokens
        cells = [cell for cell in self.cells if cell.level == level]
        nearest = min(cells, key=lambda cell: (abs(cell.rows - rows), abs(cell.tokens - length)))
        mean_ms = self.mean_ms(level, rows, tokens)
        return quantiles(nearest.p50_ms, nearest.p95_ms, nearest.p99_ms, mean_ms=mean_ms)

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
        """Return a table with one service time per level, independent of length and proportional to the rows."""
        return cls([Cell(level=level, rows=1, tokens=ANY_LENGTH, mean_ms=ms, p50_ms=ms, p95_ms=ms, p99_ms=None, runs=1)
                    for level, ms in means_ms.items()])  # fmt: skip

    @classmethod
    def read(
        cls, file: str | Path, *, backend: str = ANY, precision: str = ANY, threads: int | None = None
    ) -> "LatencyTable":
        """Read the fastest table in latency.csv for this backend, precision and number of threads (None: any number).

        Raises InputError if the file has no such table.
        """
        table = select_table(read_tables(file), backend=backend, precision=precision, threads=threads)
        if table is None:
            setup = [name for name in (backend, precision) if name != ANY] + [f"{threads} threads"] * bool(threads)
            folder, described = Path(file).parent, " ".join(setup)
            raise InputError(f"{file}: nothing was measured for {described}; run `elasticlm profile --model {folder}`")
        return table

    def write(self, file: str | Path) -> None:
        """Write the table into latency.csv. It replaces a table of the same setup; tables of other setups are kept."""
        with lock(file, wait=True):
            others = [table for table in read_tables(file) if table.setup != self.setup] if Path(file).exists() else []
            with new_file(file) as temporary, open(temporary, "w", encoding="utf-8", newline="") as out:
                writer = csv.DictWriter(out, COLUMNS, lineterminator="\n")
                out.writelines(f"# {note}\n" for note in self.notes)
                writer.writeheader()
                self._write_cells(writer)
                for table in others:
                    out.writelines(f"# {note}\n" for note in table.notes or ("",))
                    table._write_cells(writer)

    def _write_cells(self, writer: "csv.DictWriter[str]") -> None:
        for cell in self.cells:
            times = {name: round(ms, 4) for name, ms in vars(cell).items() if name.endswith("_ms") and ms}
            writer.writerow(vars(self.setup) | vars(cell) | times | {"level": level_name(cell.level)})


def read_tables(file: str | Path) -> list[LatencyTable]:
    """Read all tables of a latency.csv, one per setup, in file order. Raises InputError with the line number."""
    try:
        lines = Path(file).read_text(encoding="utf-8").splitlines()
    except OSError:
        raise InputError(f"{file}: no latency table; measure one with `elasticlm profile --model DIR`") from None
    header, *numbered = [(i, line) for i, line in enumerate(lines, 1) if line.strip() and line[0] != "#"] or [(0, "")]
    if header[1].split(",") != COLUMNS:
        raise InputError(f"{file}: expected the columns {','.join(COLUMNS)}")
    notes_of = _notes_by_line(lines)
    by_setup: dict[Setup, list[Cell]] = {}
    notes: dict[Setup, tuple[str, ...]] = {}
    rows = csv.DictReader((line for _, line in numbered), COLUMNS)
    for (number, _), row in zip(numbered, rows, strict=True):
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
        notes.setdefault(setup, notes_of[number])
    try:
        return [LatencyTable(cells, setup, notes[setup]) for setup, cells in by_setup.items()]
    except InputError as error:
        raise InputError(f"{file}: {error}") from None


def _notes_by_line(lines: Sequence[str]) -> dict[int, tuple[str, ...]]:
    """Return the notes that apply to each line, by line number: those of the comment lines above it."""
    notes: tuple[str, ...] = ()
    found, ended = {}, True
    for number, line in enumerate(lines, 1):
        if line.startswith("#"):
            note = line.removeprefix("#").strip()
            notes = (() if ended else notes) + ((note,) if note else ())
        elif line.strip():
            found[number] = notes
        ended = not line.startswith("#") and line.split(",") != COLUMNS
    return found


def fastest(tables: Sequence[LatencyTable]) -> LatencyTable:
    """Return the table with the lowest geometric mean over all levels, for one short text and for a long batch."""

    def typical_ms(table: LatencyTable) -> float:
        return statistics.geometric_mean(
            table.mean_ms(level, rows, tokens) for level in table.levels for rows, tokens in COMPARED
        )

    return min(tables, key=typical_ms)


def select_table(
    tables: Sequence[LatencyTable],
    *,
    backend: str = ANY,
    precision: str = ANY,
    threads: int | None = None,
    can_run: Callable[[Setup], bool] = lambda setup: True,
) -> LatencyTable | None:
    """Return the fastest table that matches the arguments and whose setup can run here; None if there is none.

    Tables from another machine are considered only if none was measured on a machine such as this one.

    Args:
        backend, precision: a name, or "auto" for any.
        threads: None for any number.
        can_run: whether a setup can run on this machine.
    """

    def fits(setup: Setup) -> bool:
        matches = backend in (ANY, setup.backend) and precision in (ANY, setup.precision)
        return matches and threads in (None, setup.threads) and can_run(setup)

    fitting = [table for table in tables if fits(table.setup)]
    here = machine(())
    fitting = [table for table in fitting if not table.differences_from(here)] or fitting
    return fastest(fitting) if fitting else None


def choose_setup(
    artifact: Path, *, threads: int = 1, backend: str = ANY, precision: str = ANY
) -> tuple[LatencyTable, Setup]:
    """Return the latency table of an artifact that policies will use, and the setup that will run.

    This is the fastest measured setup that matches the arguments and can run on this machine. If there is none, the
    requested setup (by default PyTorch) runs with the first table of the file.
    """
    from elasticlm.backend.onnx_runtime import is_exported

    def can_run(setup: Setup) -> bool:
        available = setup.backend == "torch" or backend == "onnx" or is_exported(artifact, setup.precision)
        return available and setup.device == "cpu"

    tables = read_tables(artifact / LATENCY_FILE)
    table = select_table(tables, backend=backend, precision=precision, threads=threads, can_run=can_run)
    if table is not None:
        return table, table.setup
    requested = {"backend": backend, "precision": precision}
    return tables[0], Setup(threads=threads, **{name: value for name, value in requested.items() if value != ANY})


def machine_notes(here: Mapping[str, Any]) -> list[str]:
    """Return the notes that describe this machine in a table (see elasticlm.machine.machine)."""
    versions = ", ".join(f"{name} {version}" for name, version in here["versions"].items())
    return [
        f"machine: {here['cpu']}, {here['cores']} cores",
        f"{INSTRUCTION_SETS}{_listed(here['instruction_sets'])}",
        f"versions: python {here['python']}, {versions}",
        f"date: {here['date']}",
    ]


def _listed(instruction_sets: Sequence[str]) -> str:
    return " ".join(instruction_sets) or "none of note"


def _locate(grid: tuple[int, ...], value: float) -> tuple[int, int, float, float]:
    """Return the neighbours of a value on a grid, its relative position between them, and the factor beyond the end."""
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
