"""Memory of engines, each in a process of its own: what it takes above the same process when it had only imported its
libraries and run a small product in each.

Every process maps copies of the files that no other process maps, so that PSS counts all of its weights; memory that
was freed is given back to the system before it is counted. The peak is what was resident at once while it ran.

Two workers of a server map the same files; what both take together says how much of it they share.

``python -m elasticlm.benchmarks.engines_memory KIND FOLDER THREADS`` is that process. It prints "ready", counts when it
gets a line, prints one line of JSON, and ends with its input.
"""

import contextlib
import ctypes
import gc
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.nn import functional as F

from elasticlm.errors import InputError
from elasticlm.model.elastic_model import ElasticModel
from elasticlm.model.structure import ElasticStructure
from elasticlm.model.teacher import load_encoder

ROWS, TOKENS = 8, 128
PROCESS = Path("/proc/self")
TORCH, LARGEST, FP32, INT8, TEACHER = "torch", "torch, largest alone", "onnx fp32", "onnx int8", "teacher, PyTorch"
WORKERS = ", two workers"
KINDS = {TORCH: "torch", LARGEST: "torch", FP32: "fp32", INT8: "int8", TEACHER: "teacher",
         **{case + WORKERS: kind for case, kind in ((TORCH, "torch"), (FP32, "fp32"), (INT8, "int8"))}}  # fmt: skip
"""What each process of a case runs, see main()."""
Memory = dict[str, dict[str, float]]


def measure(
    model: ElasticModel, artifact: Path, teacher: Path, *, precisions: tuple[str, ...], threads: int, repeats: int,
    on_process: Callable[[], object] = lambda: None,
) -> tuple[Memory, dict[str, str]]:  # fmt: skip
    """Return {case: {"pss_mib", "rss_mib", "peak_rss_mib"}}, medians over processes, and why what failed did.

    Args:
        model: as loaded from ``artifact``; its largest level alone is one of the cases.
        teacher: folder of the whole teacher.
        precisions: of ONNX graphs that the artifact has.
    """
    found: Memory = {}
    failed: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="memory-") as temporary:
        largest, copies = model.structures.largest, Path(temporary)
        shutil.copytree(artifact, copies / "model")
        shutil.copytree(teacher, copies / "teacher")
        model.cut(ElasticStructure({largest: model.structures[largest]})).save_pretrained(copies / "largest")
        folders = {LARGEST: copies / "largest", TEACHER: copies / "teacher"}
        for case, kind in KINDS.items():
            if kind in ("torch", "teacher", *precisions):
                try:
                    count, folder = 1 + case.endswith(WORKERS), folders.get(case, copies / "model")
                    runs = [_processes(count, kind, folder, threads) for _ in range(repeats)]
                    found[case] = {name: median(run[name] for run in runs) for name in runs[0]}
                except InputError as error:
                    failed[case] = str(error)
            on_process()
    return found, failed


def _processes(count: int, kind: str, folder: Path, threads: int) -> dict[str, float]:
    """Return what so many processes take together, once all of them are ready."""
    command = [sys.executable, "-m", "elasticlm.benchmarks.engines_memory", kind, str(folder.absolute()), str(threads)]
    found = []
    with contextlib.ExitStack() as stack:
        started = [stack.enter_context(subprocess.Popen(
            command, cwd=Path(__file__).parent.parent, env=os.environ | {"OMP_NUM_THREADS": str(threads)}, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )) for _ in range(count)]  # fmt: skip
        for process in started:
            if not process.stdout.readline():  # type: ignore[union-attr]
                last = (process.stderr.read().strip().splitlines() or ["no message"])[-1]  # type: ignore[union-attr]
                for other in started:
                    other.kill()
                raise InputError(f"memory of {kind}: its process ended with {process.wait()} ({last})")
        for process in started:
            process.stdin.write("count\n")  # type: ignore[union-attr]
            process.stdin.flush()  # type: ignore[union-attr]
            found.append(json.loads(process.stdout.readline()))  # type: ignore[union-attr]
        for process in started:
            process.communicate()
    return {name: round(sum(each[name] for each in found), 2) for name in found[0]}


def main(kind: str, folder: str, threads: str) -> None:
    torch.set_num_threads(int(threads))
    _load_kernels(onnx=kind in ("fp32", "int8"))
    with contextlib.suppress(OSError):  # where it may, the peak starts again from here
        (PROCESS / "clear_refs").write_text("5")
    before = _used()
    kept = _run_teacher(folder) if kind == "teacher" else _run_levels(folder, kind, int(threads))
    print("ready", flush=True)
    sys.stdin.readline()
    after = _used()
    print(json.dumps({
        "pss_mib": round((after["Pss"] - before["Pss"]) / 1024, 2),
        "rss_mib": round((after["Rss"] - before["Rss"]) / 1024, 2),
        "peak_rss_mib": round((after["VmHWM"] - before["Rss"]) / 1024, 2),
    }), flush=True)  # fmt: skip
    sys.stdin.read()
    assert kept is not None  # held until here


def _load_kernels(*, onnx: bool) -> None:
    """Let the libraries load their code, which is nobody's weights, by a product of each."""
    with torch.inference_mode():
        states = F.linear(torch.ones(1, 1, 64, 64), torch.ones(64, 64))
        F.scaled_dot_product_attention(states, states, states)
    if onnx:
        from onnx import TensorProto, helper
        from onnxruntime import InferenceSession

        x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in "xy")
        graph = helper.make_graph([helper.make_node("MatMul", ["x", "x"], ["y"])], "product", [x], [y])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(
            None, {"x": torch.ones(64, 64).numpy()}
        )


def _run_levels(folder: str, kind: str, threads: int) -> object:
    if kind == "torch":
        model = ElasticModel.from_pretrained(folder)
    else:
        model = ElasticModel.from_pretrained(folder, backend="onnx", precision=kind, threads=threads)
    ids = _ids(model.config.vocab_size, model.positions)
    for level in model.levels:
        model.encode({"input_ids": ids, "attention_mask": torch.ones_like(ids)}, level)
    return model


def _run_teacher(folder: str) -> object:
    encoder: Any = load_encoder(folder)
    ids = _ids(encoder.config.vocab_size, encoder.config.max_position_embeddings)
    with torch.inference_mode():
        encoder(input_ids=ids, attention_mask=torch.ones_like(ids))
    return encoder


def _ids(words: int, positions: int) -> torch.Tensor:
    tokens = min(TOKENS, positions)
    return torch.randint(words, (ROWS, tokens), generator=torch.Generator().manual_seed(0))


def _used() -> dict[str, float]:
    """Memory of this process in KiB by the kernel's names, after what was freed went back to the system."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    lines = [line.split() for name in ("smaps_rollup", "status") for line in (PROCESS / name).read_text().splitlines()]
    return {line[0].rstrip(":"): float(line[1]) for line in lines if line[0] in ("Pss:", "Rss:", "VmHWM:")}


if __name__ == "__main__":
    main(*sys.argv[1:])
