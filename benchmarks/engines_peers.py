"""The engines that elastic levels are compared with, each built for one shape: ``build(inputs)`` gives what is timed.

A level alone is exported and compiled without an attention mask, and for OpenVINO and torch.compile with fixed shapes:
nothing is padded here, so that is the fastest that a static model of it can be. ONNX Runtime runs two graphs in each
precision: ``onnxruntime`` by the stock route (torch.onnx.export, onnxruntime.transformers.optimizer, quantize_dynamic),
``onnxruntime-plain`` without the optimizer, fused by the session alone, which is often the faster. Threads sleep while
another engine works.
"""

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from elasticlm.benchmarks.engines_timing import WHOLE, Engine, Inputs, Run
from elasticlm.model.elastic_model import ElasticModel
from elasticlm.model.structure import ElasticStructure, Level, Structure, level_name
from elasticlm.model.teacher import load_encoder

OPSET = 17
PLAIN = "-plain"
CLOSE = 1e-3  # of fp32 hidden states, in their largest
OPENVINO = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY", "ENABLE_CPU_PINNING": False}


@dataclass(frozen=True)
class Builder:
    """An engine that can be built; ``build`` may raise anything, where it is not installed or cannot do it."""

    engine: Engine
    build: Callable[[Inputs], Run]


class Whole(nn.Module):
    """The teacher: the Hugging Face encoder without pooling."""

    def __init__(self, folder: Path, *, types: bool, **kwargs: str) -> None:
        super().__init__()
        self.takes = ("input_ids", "attention_mask", *(["token_type_ids"] if types else []))
        self.encoder = load_encoder(folder, **kwargs)

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.encoder(**dict(zip(self.takes, inputs, strict=True)))[0]


class Alone(nn.Module):
    """One level cut out of an elastic model, for inputs without padding."""

    def __init__(self, model: ElasticModel, level: Level) -> None:
        super().__init__()
        self.takes = ("input_ids", *(["token_type_ids"] if model.uses_token_types else []))
        self.structure = model.structures[level]
        self.encoder = model.cut(ElasticStructure({level: self.structure})).encoder

    def forward(self, input_ids: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        return self.encoder(input_ids, None, token_type_ids, structure=self.structure)


@dataclass
class Peers:
    """All engines of the teacher and of every level alone.

    Args:
        model: the elastic model, in PyTorch.
        teacher: folder of the whole teacher.
        workplace: empty folder for exported graphs.
        threads: of every engine.
        chosen: names of engines, such as ("eager", "openvino").
        alone: levels to run as static models.
    """

    model: ElasticModel
    teacher: Path
    workplace: Path
    threads: int
    chosen: Sequence[str]
    alone: Sequence[Level]

    def builders(self) -> list[Builder]:
        """What can be built, the teacher's engines first."""
        types = self.model.uses_token_types
        eager = Whole(self.teacher, types=types).eval()
        exported = Whole(self.teacher, types=types, attn_implementation="eager").eval()
        found = self._of(WHOLE, eager, exported, self.model.config.whole)
        for level in self.alone:
            alone = Alone(self.model, level).eval()
            found += self._of(level_name(level), alone, alone, alone.structure)
        return found

    def _of(self, level: str, module: nn.Module, exported: nn.Module, structure: Structure) -> list[Builder]:
        heads = 0 if level != WHOLE else structure.heads[0]  # 0: the optimizer finds out by itself
        graphs = Graphs(exported, self.workplace / level, heads, self.threads)
        engines: dict[tuple[str, str], Callable[[Inputs], Run]] = {
            ("eager", "fp32"): lambda inputs: _eager(module, inputs),
            ("compile", "fp32"): lambda inputs: _compiled(module, inputs),
            ("onnxruntime", "fp32"): lambda inputs: _session(graphs.optimised(inputs), graphs, inputs),
            ("onnxruntime", "int8"): lambda inputs: _session(
                graphs.quantised(graphs.optimised(inputs)), graphs, inputs
            ),
            ("onnxruntime" + PLAIN, "fp32"): lambda inputs: _session(graphs.plain(inputs), graphs, inputs),
            ("onnxruntime" + PLAIN, "int8"): lambda inputs: _session(
                graphs.quantised(graphs.plain(inputs)), graphs, inputs
            ),
            ("openvino", "fp32"): lambda inputs: _openvino(graphs, inputs),
            ("gemm", "fp32"): lambda inputs: _products(self.model, structure, inputs["input_ids"].numel()),
        }
        return [Builder(Engine(level, *key), build) for key, build in engines.items()
                if key[0].removesuffix(PLAIN) in self.chosen]  # fmt: skip


class Graphs:
    """One module by the stock route to ONNX Runtime; each file is made when it is first asked for.

    Args:
        module: has ``takes``, the names of its inputs.
        folder: to be made.
        heads: of every layer, or 0.
        threads: of sessions.
    """

    def __init__(self, module: nn.Module, folder: Path, heads: int, threads: int) -> None:
        self.module, self.folder, self.heads, self.threads = module, folder, heads, threads

    def plain(self, inputs: Inputs) -> Path:
        """The graph as exported, for any batch and length."""
        file = self.folder / "plain.onnx"
        if not file.exists():
            self.folder.mkdir(exist_ok=True)
            takes = list(cast(Sequence[str], self.module.takes))
            axes = {name: {0: "batch", 1: "tokens"} for name in [*takes, "hidden"]}
            with torch.no_grad(), quiet():
                torch.onnx.export(self.module, tuple(inputs[name] for name in takes), file, dynamo=False,
                                  opset_version=OPSET, input_names=takes, output_names=["hidden"],
                                  dynamic_axes=axes)  # fmt: skip
        return file

    def optimised(self, inputs: Inputs) -> Path:
        """The graph with fused operators."""
        from onnxruntime.transformers import optimizer

        file = self.folder / "optimised.onnx"
        if not file.exists():
            with quiet():
                fused = optimizer.optimize_model(str(self.plain(inputs)), model_type="bert", num_heads=self.heads)
                fused.save_model_to_file(str(file))
        return file

    def quantised(self, graph: Path) -> Path:
        """One of these graphs in int8, each column with a scale of its own."""
        import onnx
        from onnxruntime.quantization import QuantType, quantize_dynamic

        file = graph.with_name(f"{graph.stem}-int8.onnx")
        if not file.exists():
            with quiet():
                quantize_dynamic(graph, file, per_channel=True, weight_type=QuantType.QInt8,
                                 extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT})  # fmt: skip
        return file


def _eager(module: nn.Module, inputs: Inputs) -> Run:
    given = [inputs[name] for name in cast(Sequence[str], module.takes)]

    def run() -> Tensor:
        with torch.inference_mode():
            return module(*given)

    return run


def _compiled(module: nn.Module, inputs: Inputs) -> Run:
    """torch.compile for this shape alone, its weights frozen into the code (freezing: faster here than without)."""
    torch._dynamo.config.recompile_limit = 1000  # a compilation a level: none may fall back on eager
    given = [inputs[name] for name in cast(Sequence[str], module.takes)]
    compiled = torch.compile(module, dynamic=False, options={"freezing": True})

    def run() -> Tensor:
        with torch.no_grad():
            return compiled(*given)

    with quiet():
        run()
    return run


def _session(file: Path, graphs: Graphs, inputs: Inputs) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = graphs.threads, 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    given = {entry.name: inputs[entry.name] for entry in session.get_inputs()}

    def run() -> Tensor:
        return torch.from_numpy(session.run(None, {name: value.numpy() for name, value in given.items()})[0])

    return run


def _openvino(graphs: Graphs, inputs: Inputs) -> Run:
    import openvino

    core = openvino.Core()
    model = core.read_model(graphs.plain(inputs))
    given = {entry.any_name: inputs[entry.any_name] for entry in model.inputs}
    model.reshape({name: list(value.shape) for name, value in given.items()})
    compiled = core.compile_model(model, "CPU", OPENVINO | {"INFERENCE_NUM_THREADS": graphs.threads})
    request = compiled.create_infer_request()

    def run() -> Tensor:
        arrays = {name: value.numpy() for name, value in given.items()}
        return torch.from_numpy(request.infer(arrays, share_inputs=True, share_outputs=True)[0])

    return run


def _products(model: ElasticModel, structure: Structure, rows: int) -> Run:
    """A level's matrix products with its weights, in fp32 by torch.mm: no attention products, no bias, nothing else.

    Queries, keys and values are one product. A floor for PyTorch alone: other libraries multiply faster on some CPUs.
    """
    dim, head_size = model.config.hidden_size, model.config.head_size
    widths = [heads * head_size for heads in structure.heads]
    sizes = [
        size
        for width, neurons in zip(widths, structure.neurons, strict=True)
        for size in ((dim, 3 * width), (width, dim), (dim, neurons), (neurons, dim))
    ]
    random = torch.Generator().manual_seed(0)
    products = [(torch.randn(rows, i, generator=random), torch.randn(i, o, generator=random), torch.empty(rows, o))
                for i, o in sizes if i and o]  # fmt: skip

    def run() -> None:
        for given, weight, out in products:
            torch.mm(given, weight, out=out)

    return run


def check(hidden: Tensor, reference: Tensor) -> None:
    """Raise ValueError where an fp32 engine gives other hidden states [batch, tokens, dim]: it is no peer then."""
    difference = float((hidden - reference).abs().max() / reference.abs().max())
    if not difference <= CLOSE:
        raise ValueError(f"its hidden states differ from PyTorch's by {difference:.1e} of the largest")


def first_line(error: BaseException) -> str:
    """What an error says, in short."""
    return f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0][:200]}"


@contextmanager
def quiet() -> Iterator[None]:
    """Libraries that warn of what is known (tracing, fused operators) do not."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
