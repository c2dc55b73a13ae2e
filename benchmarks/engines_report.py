"""Results of ``elasticlm engines``: gates, engines.csv, engines.json, the Pareto picture and the tables."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from elasticlm.benchmarks.engine_names import OURS
from elasticlm.benchmarks.engines_memory import FP32, INT8, LARGEST, TEACHER, TORCH, WORKERS, Memory
from elasticlm.benchmarks.engines_peers import PLAIN
from elasticlm.benchmarks.engines_timing import WHOLE, Engine, Times, ratio
from elasticlm.errors import InputError
from elasticlm.model.folder import QUALITY_FILE

MEASURE = "RR@10"
STOCKS = Engine(WHOLE, "onnxruntime", "int8"), Engine(WHOLE, "onnxruntime" + PLAIN, "int8")
PEERS = {"openvino": "OpenVINO", "compile": "torch.compile"}
OF_STOCK = {"1x16": {"100": 1.05, "50": 0.75, "10": 0.50}, "8x128": {"100": 1.05, "50": 0.65, "10": 0.30}}
AS_FAST, SWITCHING, ALL_LEVELS, OF_TEACHER, SECOND_WORKER = 1.0, 1.05, 1.05, 1.0, 1.2
TITLES = {
    ("torch", "fp32"): "elastic, PyTorch",
    ("onnx", "fp32"): "elastic, ONNX fp32",
    ("onnx", "int8"): "elastic, ONNX int8",
    ("eager", "fp32"): "PyTorch",
    ("compile", "fp32"): "torch.compile",
    ("onnxruntime", "fp32"): "ONNX Runtime fp32",
    ("onnxruntime", "int8"): "ONNX Runtime int8",
    ("onnxruntime" + PLAIN, "fp32"): "ONNX Runtime fp32",
    ("onnxruntime" + PLAIN, "int8"): "ONNX Runtime int8",
    ("openvino", "fp32"): "OpenVINO fp32",
    ("gemm", "fp32"): "products alone",
}
"""Engines by name and precision, ours first, as pictures and tables call them; of two with one title the faster counts.
"""


@dataclass(frozen=True)
class Gate:
    """A ratio that must not be above its limit; without a limit it is only reported."""

    gate: str
    value: float
    limit: float | None = None

    @property
    def ok(self) -> bool:
        return self.limit is None or self.value <= self.limit


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One engine on one shape; ``of_stock`` is its time in that of the whole teacher in ONNX Runtime's int8 (by the
    faster of two routes)."""

    shape: str
    level: str
    engine: str
    precision: str
    median_ms: float
    p95_ms: float
    runs: int
    of_stock: float | None


@dataclass(kw_only=True)
class Results:
    """All that was measured, as engines.json holds it.

    retention: of the teacher's RR@10, by precision and level; teacher_int8_retention: of its int8 graph, where known.
    """

    model: str
    teacher: str
    threads: int
    command: str
    machine: dict[str, Any]
    levels: list[str]
    cells: list[Cell]
    gates: list[Gate]
    memory: Memory
    switching: dict[str, float]
    missing: dict[str, str]
    retention: dict[str, dict[str, float]] = field(default_factory=dict)
    teacher_int8_retention: float | None = None

    @property
    def shapes(self) -> list[str]:
        return list(dict.fromkeys(cell.shape for cell in self.cells))

    @property
    def main_shapes(self) -> list[str]:
        """The shapes that have gates; where none was measured, the first two."""
        return [shape for shape in OF_STOCK if shape in self.shapes] or self.shapes[:2]

    def to_json(self) -> dict[str, Any]:
        gates = [{**vars(gate), "ok": gate.ok} for gate in self.gates]
        return asdict(self) | {"gates": gates}

    @classmethod
    def read(cls, folder: str | Path) -> "Results":
        """Read DIR/engines.json; raises InputError."""
        file = Path(folder) / "engines.json"
        try:
            document = json.loads(file.read_text("utf-8"))
            document["cells"] = [Cell(**cell) for cell in document["cells"]]
            document["gates"] = [Gate(gate["gate"], gate["value"], gate["limit"]) for gate in document["gates"]]
            return cls(**document)
        except OSError as error:
            raise InputError(f"{file}: {error.strerror}; it is written by `elasticlm engines`") from None
        except (ValueError, KeyError, TypeError):
            raise InputError(f"{file}: expected what `elasticlm engines` writes") from None

    def write(self, folder: Path) -> None:
        """Write engines.csv, engines.json, engines.md and engines.png into a folder."""
        columns = ["shape", "level", "engine", "precision", "median_ms", "p95_ms", "runs"]
        pd.DataFrame([asdict(cell) for cell in self.cells])[columns].to_csv(folder / "engines.csv", index=False)
        (folder / "engines.json").write_text(json.dumps(self.to_json(), indent=1, ensure_ascii=False), "utf-8")
        (folder / "engines.md").write_text(markdown(self), "utf-8")
        draw(self, folder / "engines.png")


def stocks(times: Times) -> list[Engine]:
    """The whole teacher in ONNX Runtime's int8 by the routes that were measured, the faster first."""
    return sorted((engine for engine in STOCKS if engine in times), key=lambda engine: float(np.median(times[engine])))


def cells(shape: str, times: Times) -> list[Cell]:
    """Medians, 95th percentiles and ratios of one shape."""
    found = []
    for engine, ms in times.items():
        of_stock = next((ratio(times, engine, stock) for stock in stocks(times)), None)
        found.append(Cell(
            shape=shape, level=engine.level, engine=engine.name, precision=engine.precision,
            median_ms=round(float(np.median(ms)), 4), p95_ms=round(float(np.percentile(ms, 95)), 4), runs=len(ms),
            of_stock=None if of_stock is None else round(of_stock, 4),
        ))  # fmt: skip
    return found


def find_gates(
    times: Mapping[str, Times],
    levels: Sequence[str],
    switching: Mapping[str, float],
    memory: Memory,
    *,
    top: bool = False,
    layers_mib: float = math.inf,
) -> list[Gate]:
    """All gates of which both sides were measured.

    Args:
        times: by shape; those of OF_STOCK have gates.
        levels: of the model.
        switching: ratio by shape.
        top: whether level 100 is the teacher, which has weights of its own and stays in fp32: what follows from that is
            reported without a limit.
        layers_mib: the model's weights in PyTorch without word embeddings.
    """
    found = []
    for shape in OF_STOCK:
        if shape in times:
            found += _against_stock(shape, times[shape], top=top)
            found += [gate for level in levels for peer in PEERS for gate in _against(peer, shape, level, times[shape])]
    found += [Gate(f"switching at {shape}: all levels in turn / staying on each", value, SWITCHING)
              for shape, value in switching.items()]  # fmt: skip
    for ours, theirs, limit in ((TORCH, LARGEST, ALL_LEVELS), (INT8, TEACHER, OF_TEACHER)):
        if ours in memory and theirs in memory:
            value = memory[ours]["pss_mib"] / memory[theirs]["pss_mib"]
            found.append(Gate(f"memory (PSS): all levels, {ours} / {theirs}", value, None if top else limit))
    for case in (TORCH, FP32, INT8):
        if case + WORKERS in memory:
            more = memory[case + WORKERS]["pss_mib"] - memory[case]["pss_mib"]
            found.append(Gate(f"memory (PSS): a second worker, {case} / weights without word embeddings",
                              more / layers_mib, SECOND_WORKER if case == TORCH else None))  # fmt: skip
    return found


def _against_stock(shape: str, times: Times, *, top: bool) -> list[Gate]:
    """The faster of the teacher's int8 graphs has the limit; the other is reported without one."""
    found = []
    for level, of_level in OF_STOCK[shape].items():
        limit = None if top and level == "100" else of_level
        for place, stock in enumerate(stocks(times)):
            value = ratio(times, Engine(level, "onnx", "int8"), stock)
            if value is not None:
                name = f"{shape}, level {level}: onnx int8 / whole teacher, {stock.name} int8"
                found.append(Gate(f"{name} (reported, no limit)", value) if place else Gate(name, value, limit))
    return found


def _against(peer: str, shape: str, level: str, times: Times) -> list[Gate]:
    """The level as it would be served, in the better of our precisions, compared with the static level."""
    compared = {precision: ratio(times, Engine(level, "onnx", precision), Engine(level, peer))
                for precision in OURS["onnx"]}  # fmt: skip
    ratios = {precision: value for precision, value in compared.items() if value is not None}
    if not ratios:
        return []
    best = min(ratios, key=lambda precision: ratios[precision])
    gates = [Gate(f"{shape}, level {level}: onnx {best} / {PEERS[peer]} fp32", ratios[best], AS_FAST)]
    return gates + [Gate(f"{shape}, level {level}: onnx {precision} / {PEERS[peer]} fp32 (reported, no limit)", value)
                    for precision, value in ratios.items() if precision != best]  # fmt: skip


def read_retention(files: Sequence[str], artifact: Path) -> dict[str, dict[str, float]]:
    """Return {"fp32" or "int8": {level: retention}} of ``PRECISION=FILE.json`` files, else of the artifact's own.

    The artifact's quality.json gives its first entry, and the same measured in int8 if the file has it.
    Raises InputError where a file is no evaluation.
    """
    found = {}
    for text in files:
        precision, equals, file = text.partition("=")
        if not equals or precision not in OURS["onnx"]:
            raise InputError(f"--quality {text}: expected fp32=FILE.json or int8=FILE.json")
        try:
            found[precision] = _retention(json.loads(Path(file).read_text("utf-8")))
        except OSError as error:
            raise InputError(f"{file}: {error.strerror}") from None
        except (ValueError, KeyError, TypeError, AttributeError):
            raise InputError(f"{file}: expected an evaluation with {MEASURE}, by `elasticlm evaluate`") from None
    saved = artifact / QUALITY_FILE
    if files or not saved.is_file():
        return found
    try:
        entries = json.loads(saved.read_text("utf-8"))
        first = next(iter(entries)).removesuffix("#int8")
        names = {"fp32": first, "int8": f"{first}#int8"}
        return {precision: _retention(entries[name]) for precision, name in names.items() if name in entries}
    except (ValueError, KeyError, TypeError, AttributeError, StopIteration):
        return {}  # of another task: the picture does without


def _retention(evaluation: Mapping[str, Any]) -> dict[str, float]:
    return {level: float(kept[MEASURE][0]) for level, kept in evaluation["retention"].items()}


def markdown(results: Results) -> str:
    """One table per main shape: one row per level (and the whole teacher), one column per engine, medians in ms."""
    parts = [f"Median ms on {results.machine['cpu']}, {results.threads} thread{'s' if results.threads > 1 else ''}; in "
             "brackets, the time as a share of the whole teacher's in ONNX Runtime's int8. All but the elastic columns "
             "are static models: the teacher, or one level alone."]  # fmt: skip
    for shape in results.main_shapes:
        measured = [cell for cell in results.cells if cell.shape == shape]
        there = {TITLES[_key(cell)] for cell in measured}
        titles = [title for title in dict.fromkeys(TITLES.values()) if title in there]
        rows = [["level", *titles], ["---:"] * (len(titles) + 1)]
        for level in [WHOLE, *results.levels]:
            rows.append([level, *(_written(_fastest(measured, level, title)) for title in titles)])
        lines = "\n".join(f"| {' | '.join(row)} |" for row in rows)
        parts.append(f"**{shape.replace('x', ' x ')} tokens**\n\n{lines}")
    return "\n\n".join(parts) + "\n"


def _key(cell: Cell) -> tuple[str, str]:
    return cell.engine, cell.precision


def _fastest(cells: Sequence[Cell], level: str, title: str) -> Cell | None:
    found = [cell for cell in cells if cell.level == level and TITLES[_key(cell)] == title]
    return min(found, key=lambda cell: cell.median_ms, default=None)


def _written(cell: Cell | None) -> str:
    if cell is None:
        return ""
    of_stock = f" ({cell.of_stock:.2f})" if cell.of_stock is not None and cell.engine in OURS else ""
    return f"{cell.median_ms:.3g}{of_stock}"


def draw(results: Results, file: Path) -> None:
    """Latency against retention, one panel per main shape: elastic levels as lines, static engines as points.

    Without any retention the level itself is the height.
    """
    plt.switch_backend("Agg")
    shapes = results.main_shapes
    figure, panels = plt.subplots(1, len(shapes), figsize=(7 * len(shapes), 6), layout="constrained", squeeze=False)
    for axes, shape in zip(panels[0], shapes, strict=True):
        for color, title in enumerate(dict.fromkeys(TITLES.values())):
            points = _points(results, shape, title)
            if not points or title == TITLES["gemm", "fp32"]:
                continue
            at, heights = zip(*points, strict=True)
            ours = color < sum(map(len, OURS.values()))
            axes.plot(at, heights, "o-" if ours else "Xsd^vP"[color % 6], color=f"C{color}", label=title,
                      linewidth=2, markersize=5 if ours else 7, alpha=1 if ours else 0.7)  # fmt: skip
        axes.set(xscale="log", xlabel="median latency, ms", title=f"{shape.replace('x', ' x ')} tokens")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.grid(alpha=0.3)
    panels[0][0].set_ylabel(f"{MEASURE}, share of the teacher's" if results.retention else "level, %")
    panels[0][-1].legend(fontsize="small")
    figure.savefig(file, dpi=120)
    plt.close(figure)


def _points(results: Results, shape: str, title: str) -> list[tuple[float, float]]:
    """(ms, height) of the teacher and of an engine's levels, largest first; without a known height none."""
    measured = [cell for cell in results.cells if cell.shape == shape]
    points = []
    for level in [WHOLE, *results.levels]:
        cell = _fastest(measured, level, title)
        height = None if cell is None else _height(results, cell)
        if cell is not None and height is not None:
            points.append((cell.median_ms, height))
    return points


def _height(results: Results, cell: Cell) -> float | None:
    if not results.retention:
        return 100.0 if cell.level == WHOLE else float(cell.level)
    if cell.level == WHOLE:
        return 1.0 if cell.precision == "fp32" else results.teacher_int8_retention
    return results.retention.get(cell.precision, results.retention.get("fp32", {})).get(cell.level)
