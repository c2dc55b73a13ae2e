"""Check at start that int8 answers as well here as where it was exported; levels that do not are served in fp32."""

import logging
import statistics
from collections.abc import Mapping, Set
from dataclasses import replace
from pathlib import Path

from elasticlm.backend import Backend
from elasticlm.backend.fallback import FallbackBackend
from elasticlm.backend.graph_hashes import graphs_folder
from elasticlm.backend.int8_reference import Reference
from elasticlm.backend.onnx_runtime import OnnxBackend, check_export, is_exported
from elasticlm.backend.torch_backend import TorchBackend
from elasticlm.model.elastic_model import ElasticModel
from elasticlm.model.folder import LATENCY_FILE
from elasticlm.model.structure import Level, level_name
from elasticlm.schedule.latency import Cell, LatencyTable, read_tables, select_table
from elasticlm.schedule.profiling import measure

logger = logging.getLogger(__name__)

RUNS = 5
"""Runs per level and cell where nothing was measured in fp32."""


def check_int8(model: ElasticModel, table: LatencyTable, artifact: Path, threads: int) -> tuple[LatencyTable, int]:
    """Replace int8 by fp32 at the levels whose error is above the limit of the export.

    fp32 runs on ONNX Runtime where the artifact has graphs for it, else on PyTorch. Returns the latency table with
    those levels' times in fp32, and their number.
    """
    if model.backend.precision != "int8":
        return table, 0
    reference = Reference.read(graphs_folder(artifact, "int8"))
    if reference is None:
        logger.warning("%s: its int8 graphs have no reference, so they are not checked on this machine; export them "
                       "anew", artifact)  # fmt: skip
        return table, 0
    errors = {level: reference.error(model, level) for level in model.levels}
    bad = {level: error for level, error in errors.items() if not error <= reference.limits[level_name(level)]}
    if not bad:
        return table, 0
    fallback = _fp32_backend(model, artifact, bad.keys(), threads)
    model.backend = FallbackBackend(model.backend, fallback, bad.keys())
    for level, error in bad.items():
        logger.warning(
            "INT8 IS TOO INACCURATE HERE: %s, level %s has an error of %.3f on this machine, the limit of its export "
            "is %.3f. The level runs in fp32 (%s), which is slower: export int8 anew on this machine, or serve fp32",
            artifact, level_name(level), error, reference.limits[level_name(level)], fallback.name,
        )  # fmt: skip
    return _with_times_in_fp32(table, model, artifact, bad, fallback.name, threads), len(bad)


def _fp32_backend(model: ElasticModel, artifact: Path, levels: Set[Level], threads: int) -> Backend:
    if is_exported(artifact, "fp32"):
        check_export(artifact, "fp32")
        encoders = {level: model.encoders[level] for level in sorted(levels, reverse=True)}
        return OnnxBackend(graphs_folder(artifact, "fp32"), encoders, precision="fp32", threads=threads)
    whole = ElasticModel.from_pretrained(artifact)
    for level in levels:
        whole.encoders[level][0].embeddings = model.encoders[level][0].embeddings  # held once
    return TorchBackend(whole.encoders)


def _with_times_in_fp32(
    table: LatencyTable, model: ElasticModel, artifact: Path, levels: Mapping[Level, float], backend: str, threads: int
) -> LatencyTable:
    """Return the table with these levels' times in fp32.

    They are those of the same backend and threads in latency.csv, else of another backend, else a few runs on short
    batches scale the times in int8.
    """
    tables = read_tables(artifact / LATENCY_FILE)
    measured = (select_table(tables, backend=name, precision="fp32", threads=threads) for name in (backend, "auto"))
    fp32 = next((each for each in measured if each is not None and set(levels) <= set(each.levels)), None)
    if fp32 is None:
        ratios = {level: _slowdown(table, model, level, threads) for level in levels}
        return table.scaled(dict.fromkeys(table.levels, 1.0) | ratios, "levels in fp32 scaled at start")
    cells = [_cell_of(fp32, cell) if cell.level in levels else cell for cell in table.cells]
    return LatencyTable(cells, table.setup, (*table.notes, "some levels in fp32"))


def _slowdown(table: LatencyTable, model: ElasticModel, level: Level, threads: int) -> float:
    tokens = sorted({table.tokens[0], table.tokens[-1]})
    now = measure(model, levels=[level], rows=table.rows[:1], tokens=tokens, threads=threads, seconds=0, min_runs=RUNS)
    return statistics.geometric_mean(cell.p50_ms / table.mean_ms(level, cell.rows, cell.tokens) for cell in now.cells)


def _cell_of(table: LatencyTable, wanted: Cell) -> Cell:
    """Return a table's cell at the level, rows and tokens of another table's cell, interpolated if need be."""
    place = wanted.level, wanted.rows, wanted.tokens
    for cell in table.cells:
        if (cell.level, cell.rows, cell.tokens) == place:
            return cell
    mean_ms = table.mean_ms(*place)
    return replace(wanted, mean_ms=mean_ms, p50_ms=mean_ms, p95_ms=table.p95_ms(*place), p99_ms=None)
