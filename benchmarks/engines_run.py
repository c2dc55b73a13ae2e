"""Timing every level against static inference engines (``elasticlm engines``)."""

import argparse
import os
import shlex
import tempfile
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import cast

import torch

from elasticlm import command
from elasticlm.backend.graph_hashes import graphs_folder
from elasticlm.backend.onnx_runtime import installed, is_exported
from elasticlm.benchmarks import engines_memory
from elasticlm.benchmarks.engine_names import NAMES, OURS, QUICK_LEVELS, QUICK_NAMES, QUICK_SHAPES, SHAPES
from elasticlm.benchmarks.engines_peers import Builder, Peers, check, first_line
from elasticlm.benchmarks.engines_report import OF_STOCK, Results, cells, find_gates, read_retention
from elasticlm.benchmarks.engines_timing import (
    WHOLE,
    Engine,
    Inputs,
    Run,
    Shape,
    Times,
    names,
    switching_cost,
    time_rounds,
)
from elasticlm.command import progress, say
from elasticlm.errors import InputError
from elasticlm.files import new_folder
from elasticlm.machine import machine
from elasticlm.model.download import download, resolve_model
from elasticlm.model.elastic_model import ElasticModel
from elasticlm.model.structure import Level

PACKAGES = ("torch", "transformers", "onnx", "onnxruntime", "openvino")
WARM_UP = 3


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How long to measure: seconds per engine and shape, least rounds; for switching seconds per shape, least pairs of
    blocks; processes a memory case."""

    seconds: float = 2.0
    rounds: int = 15
    switching_s: float = 10.0
    pairs: int = 20
    processes: int = 3


QUICK = Effort(seconds=0.2, rounds=5, switching_s=3, pairs=5, processes=1)


@dataclass
class Bench:
    """Our model in every backend, its peers, and what turned out to be missing."""

    ours: dict[tuple[str, str], ElasticModel]
    peers: list[Builder]
    missing: dict[str, str] = field(default_factory=dict)

    @property
    def model(self) -> ElasticModel:
        """The one in PyTorch."""
        return self.ours["torch", "fp32"]

    def build(self, shape: Shape) -> dict[Engine, Run]:
        """All engines on a batch of this shape, each run before; the hidden states of fp32 ones are checked."""
        inputs = shape.inputs(self.model)
        runs: dict[Engine, Run] = {}
        for (backend, precision), model in self.ours.items():
            for level, name in zip(model.levels, names(model.levels), strict=True):
                runs[Engine(name, backend, precision)] = _ours(model, inputs, level)
        references = dict(zip(names(self.model.levels), self._hidden(inputs), strict=True))
        for builder in progress(self.peers, desc=f"{shape}: building", unit="engine"):
            engine = builder.engine
            if str(engine) in self.missing:
                continue
            try:
                run = builder.build(inputs)
                if engine.name != "gemm":
                    if engine.precision == "fp32":
                        check(run(), references.setdefault(engine.level, run()))
                    run = self._finished(run, inputs)
                run()
                runs[engine] = run
            except Exception as error:  # every library has errors of its own
                self.missing[str(engine)] = first_line(error)
                say(f"missing: {engine} ({first_line(error)})")
        for run in runs.values():
            for _ in range(WARM_UP):
                run()
        return runs

    def _hidden(self, inputs: Inputs) -> list[torch.Tensor]:
        return [self.model.backend.hidden(inputs, level) for level in self.model.levels]

    def _finished(self, hidden: Run, inputs: Inputs) -> Run:
        """An engine's hidden states pooled as ours are."""

        def run() -> torch.Tensor:
            with torch.inference_mode():
                return self.model.finish(cast(torch.Tensor, hidden()), inputs["attention_mask"])

        return run


def _ours(model: ElasticModel, inputs: Inputs, level: Level) -> Run:
    return lambda: model.encode(inputs, level)


def run_engines(options: argparse.Namespace, words: list[str]) -> int:
    """Measure what the options name; 1 where a gate fails.

    Args:
        words: the command line's own words, for the record.
    """
    results = measure(options, words)
    with new_folder(options.output, overwrite=options.overwrite) as folder:
        results.write(folder)
    print_gates(results)
    return 0 if all(gate.ok for gate in results.gates) else 1


def measure(options: argparse.Namespace, argv: list[str]) -> Results:
    """Time all engines on all shapes, then what switching costs and what memory they take."""
    effort = QUICK if options.quick else Effort()
    os.environ.setdefault("OMP_NUM_THREADS", str(options.threads))
    torch.set_num_threads(options.threads)
    artifact, teacher = download(options.model), resolve_model(options.teacher)
    retention = read_retention(options.quality, artifact)
    chosen = _chosen(options.engines or ",".join(QUICK_NAMES if options.quick else NAMES))
    shapes = [Shape.parse(text) for text in (options.shapes or (QUICK_SHAPES if options.quick else SHAPES)).split(",")]
    with tempfile.TemporaryDirectory(prefix="engines-") as workplace:
        ours, missing = load_ours(artifact, chosen, options.threads)
        model = ours["torch", "fp32"]
        for shape in shapes:
            shape.inputs(model)  # refused before anything is timed
        peers = Peers(model, teacher, Path(workplace), options.threads, chosen,
                      [level for level in model.levels if not options.quick or level in QUICK_LEVELS])  # fmt: skip
        bench = Bench(ours, _few(peers.builders(), quick=options.quick), missing)
        times = {str(shape): _timed(bench, shape, effort, chosen) for shape in shapes}
    switching = _switching(bench, shapes, effort)
    memory = _memory(model, artifact, teacher, bench, options.threads, effort)
    levels = names(model.levels)
    return Results(
        model=str(options.model), teacher=options.teacher, threads=options.threads,
        command=shlex.join(["elasticlm", "engines", *argv]), machine=machine(PACKAGES), levels=levels,
        cells=[cell for shape, found in times.items() for cell in cells(shape, found)],
        gates=find_gates(times, levels, switching, memory, top=model.top is not None, layers_mib=_layers_mib(model)),
        memory=memory, switching=switching,
        missing=bench.missing, retention=retention,
        teacher_int8_retention=options.teacher_int8_retention,
    )  # fmt: skip


def _layers_mib(model: ElasticModel) -> float:
    """Size of all weights in fp32 but the word embeddings, in MiB."""
    embeddings, weights = model.weights_mib()
    return weights - embeddings


def load_ours(
    artifact: Path, chosen: list[str], threads: int
) -> tuple[dict[tuple[str, str], ElasticModel], dict[str, str]]:
    """Load the model in PyTorch, and in ONNX Runtime where chosen; with what is missing.

    Raises InputError where a precision was not exported.
    """
    found = {("torch", "fp32"): ElasticModel.from_pretrained(artifact)}
    if "onnx" not in chosen:
        return found, {}
    if not installed():
        return found, {"onnx": "onnxruntime is not installed"}
    for precision in OURS["onnx"]:
        if not is_exported(artifact, precision):
            raise InputError(f"{graphs_folder(artifact, precision)}: no ONNX graphs in {precision}; run "
                             f"`elasticlm export --model {artifact} --onnx fp32 int8`")  # fmt: skip
        found["onnx", precision] = ElasticModel.from_pretrained(
            artifact, backend="onnx", precision=precision, threads=threads
        )
    return found, {}


def _chosen(text: str) -> list[str]:
    chosen = text.split(",")
    if unknown := sorted(set(chosen) - set(NAMES)):
        raise InputError(f"--engines {unknown[0]!r}: expected some of {','.join(NAMES)}")
    if not set(chosen) & set(OURS):
        raise InputError(f"--engines {text}: none of them is ours; expected {' or '.join(OURS)} among them")
    return chosen


def _few(builders: list[Builder], *, quick: bool) -> list[Builder]:
    """A quick run leaves out what is slow to build or to run and has no gate: the teacher by torch.compile, the slower
    of ONNX Runtime's fp32 graphs."""

    def is_left_out(engine: Engine) -> bool:
        return engine == Engine(WHOLE, "compile") or (engine.name, engine.precision) == ("onnxruntime", "fp32")

    return [builder for builder in builders if not (quick and is_left_out(builder.engine))]


def _timed(bench: Bench, shape: Shape, effort: Effort, chosen: list[str]) -> Times:
    torch._dynamo.reset()  # what was compiled for another shape
    runs = {
        engine: run for engine, run in bench.build(shape).items() if engine.name in chosen or engine.name not in OURS
    }
    bar = progress(desc=f"{shape}: {len(runs)} engines in turns", unit="round")
    times = time_rounds(runs, seconds=effort.seconds, least=effort.rounds, on_round=bar.update)
    bar.close()
    return times


def _switching(bench: Bench, shapes: list[Shape], effort: Effort) -> dict[str, float]:
    """What changing levels costs in int8, on the shapes that have gates."""
    model = bench.ours.get(("onnx", "int8"))
    found = {}
    for shape in shapes:
        if model is not None and str(shape) in OF_STOCK:
            say(f"{shape}: switching")
            inputs = shape.inputs(bench.model)
            found[str(shape)] = switching_cost(
                partial(model.encode, inputs), model.levels,
                seconds=effort.switching_s, pairs=effort.pairs,
            )  # fmt: skip
    return found


def _memory(
    model: ElasticModel, artifact: Path, teacher: Path, bench: Bench, threads: int, effort: Effort
) -> engines_memory.Memory:
    bar = progress(total=len(engines_memory.KINDS), desc="memory", unit="case")
    precisions = tuple(precision for backend, precision in bench.ours if backend == "onnx")
    memory, failed = engines_memory.measure(model, artifact, teacher, precisions=precisions, threads=threads,
                                            repeats=effort.processes, on_process=bar.update)  # fmt: skip
    bar.close()
    bench.missing |= {f"memory of {case}": reason for case, reason in failed.items()}
    return memory


def print_gates(results: Results) -> None:
    """Print the tables for people and the line for programs."""
    shown = [cell for cell in results.cells if cell.shape in results.main_shapes]
    command.print_table([
        {"shape": cell.shape, "level": cell.level, "engine": cell.engine, "precision": cell.precision,
         "median ms": cell.median_ms, "p95 ms": cell.p95_ms, "runs": cell.runs,
         "of teacher's int8": "" if cell.of_stock is None else f"{cell.of_stock:.3f}"} for cell in shown
    ])  # fmt: skip
    print()
    command.print_table([{"memory of": case, **found} for case, found in results.memory.items()])
    command.print_table([{"missing": engine, "reason": reason} for engine, reason in results.missing.items()])
    print()
    command.print_table([
        {"gate": gate.gate, "value": round(gate.value, 3), "limit": "" if gate.limit is None else f"{gate.limit:g}",
         "ok": "" if gate.limit is None else "yes" if gate.ok else "NO"} for gate in results.gates
    ])  # fmt: skip
    command.print_result(results.to_json())
