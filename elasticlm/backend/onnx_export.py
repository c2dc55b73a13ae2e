"""Export the levels of an artifact as ONNX graphs, after each has been compared with PyTorch. Needs onnx."""

import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from elasticlm.backend.graph_hashes import new_graphs
from elasticlm.backend.int8_reference import Reference
from elasticlm.backend.onnx_runtime import (
    EXPORT_FILE,
    OnnxBackend,
    check_export,
    check_precision,
    installed,
    sha256_weights,
)
from elasticlm.backend.torch_backend import TorchBackend
from elasticlm.errors import InputError
from elasticlm.machine import machine
from elasticlm.model.elastic_model import ElasticModel
from elasticlm.model.heads import summary
from elasticlm.model.structure import Level, level_name
from elasticlm.model.tokenizing import Tokenized
from elasticlm.schedule.profiling import text_of

if TYPE_CHECKING:
    from elasticlm.backend.onnx_graph import Calibration

MOST_DIFFERENCE = 1e-4  # of fp32 vectors, element by element
LEAST_COSINE = 0.99  # of int8 vectors, in the mean
IN_FP32 = 4  # neurons a layer
TEXTS_AT_ONCE = 16
LENGTHS = (4, 7, 12, 20, 33, 54, 88)  # tokens of the texts that fp32 graphs are compared on, where no others are given


def can_export() -> bool:
    """Whether onnx and onnxruntime are there."""
    try:
        import onnx  # noqa: F401
    except ImportError:
        return False
    return installed()


def export(
    model: ElasticModel,
    artifact: str | Path,
    precision: str,
    texts: Sequence[str],
    *,
    passages: Sequence[str] = (),
    top_precision: str = "fp32",
    on_level: Callable[[], object] = lambda: None,
) -> dict[str, dict[str, float]]:
    """Write a graph for every level of the model into its artifact folder, replacing what stood there.

    Args:
        artifact: the folder that the model was loaded from.
        precision: "fp32" or "int8".
        texts: real ones, by which each graph is compared with PyTorch.
        passages: longer ones, for the reference by which int8 is checked where it is served; of a model with a head,
            one for each text.
        top_precision: of level 100 if that is the teacher; it is not quantised unless that is asked for.
        on_level: called after each level, for progress.

    Returns:
        For each level ``max_diff`` and mean ``cosine`` of the vectors that its graph and PyTorch give (of models with a
        head: of what the head sees).

    Raises InputError where onnx is missing, the model is of a kind that has no graph, or a graph is not close enough:
    1e-4 in fp32, a mean cosine of 0.99 in int8. Nothing is written then.
    """
    check_precision(precision)
    if not can_export():
        raise InputError("exporting ONNX graphs needs onnx and onnxruntime: pip install 'elasticlm[onnx]'")
    from elasticlm.backend.onnx_graph import build_graph

    found = {}
    own = set(model.levels) - set(model.trained_levels)  # a teacher on top
    inputs = [model.tokenize(texts[start : start + TEXTS_AT_ONCE]) for start in range(0, len(texts), TEXTS_AT_ONCE)]
    with new_graphs(artifact, precision) as folder:
        for level in model.levels:
            encoder, structure = model.encoders[level]
            of_level = top_precision if level in own else precision
            calibration = calibrate(model, level, inputs) if of_level == "int8" else None
            graph = build_graph(
                encoder, structure, model.config.hidden_act, precision=of_level, calibration=calibration
            )
            (folder / f"{level_name(level)}.onnx").write_bytes(graph.SerializeToString())
            on_level()
        backend = OnnxBackend(folder, model.encoders, precision=precision, threads=1)
        for level in model.levels:
            found[level_name(level)] = _compared(model, backend, level, inputs)
            _refuse(level, found[level_name(level)], top_precision if level in own else precision)
        if precision == "int8":
            Reference.of(model, backend, texts, passages).write(folder)
        report = {
            "weights_sha256": sha256_weights(artifact),
            "precision": precision,
            "top_precision": top_precision if own else None,
            "texts": len(texts),
            "levels": found,
            "machine": machine(("torch", "onnx", "onnxruntime")),
        }
        (folder / EXPORT_FILE).write_text(json.dumps(report, indent=1), "utf-8")
    return found


@torch.no_grad()
def calibrate(model: ElasticModel, level: Level, inputs: Sequence[Tokenized]) -> "Calibration":
    """Return what these texts show of the blocks of a level.

    In each layer, the neurons with the largest values stay in fp32. Two already bring most (of MiniLM at 100: cosine
    0.995 to 0.998); four cost no more.
    """
    from elasticlm.backend.onnx_graph import Calibration

    ranges: dict[nn.Module, tuple[Tensor, Tensor]] = {}

    def note(module: nn.Module, given: tuple[Tensor, ...]) -> None:
        values = given[0].flatten(0, -2)
        smallest, largest = ranges.get(module, (values[0], values[0]))
        ranges[module] = torch.minimum(smallest, values.amin(0)), torch.maximum(largest, values.amax(0))

    layers: Any = model.encoders[level][0].layers
    networks = [layer.feed_forward for layer in layers]
    blocks = [*(layer.attention for layer in layers), *networks]
    with ExitStack() as hooks:
        for module in (*blocks, *(network.units for network in networks)):
            hooks.enter_context(module.register_forward_pre_hook(note))
        for batch in inputs:
            TorchBackend(model.encoders).hidden(batch, level)
    in_fp32: dict[nn.Module, list[int]] = {}
    for network in networks:
        smallest, largest = ranges.get(network.units, (torch.zeros(0),) * 2)  # of no neurons
        values = torch.maximum(smallest.abs(), largest.abs())
        in_fp32[network] = values.topk(min(IN_FP32, len(values))).indices.tolist()
    return Calibration({block: ranges[block] for block in blocks}, in_fp32)


def ensure_exported(model: ElasticModel, artifact: str | Path, precision: str) -> None:
    """Export the graphs of fp32 anew where they are missing, damaged or those of other weights.

    Raises InputError where that does not work, and for int8, which wants real texts to be compared on (it says how).
    """
    try:
        check_export(artifact, precision)
    except InputError:
        if precision != "fp32":
            raise
        limit = model.config.max_tokens.query
        export(model, artifact, precision, [text_of(model, tokens) for tokens in LENGTHS if tokens <= limit])


@contextmanager
def on_onnx_runtime(model: ElasticModel) -> Iterator[None]:
    """Run the largest level in fp32 for a while, whatever runs the model otherwise: what is stored is the same for all.

    By ONNX Runtime, where it is there and the model is on the CPU, else by PyTorch.
    About 1.7 times as fast as PyTorch for long texts, and equal to 1e-6; for encoding a corpus.
    """
    before, largest = model.backend, model.structures.largest
    encoder, structure = model.encoders[largest]
    plain = model.backend = TorchBackend(model.encoders)
    if can_export() and plain.device == "cpu" and plain.precision == "fp32":
        from elasticlm.backend.onnx_graph import build_graph

        with tempfile.TemporaryDirectory() as folder, suppress(InputError):  # of a kind that has no graph
            graph = build_graph(encoder, structure, model.config.hidden_act)
            Path(folder, f"{level_name(largest)}.onnx").write_bytes(graph.SerializeToString())
            model.backend = OnnxBackend(Path(folder), {largest: (encoder, structure)}, precision="fp32",
                                        threads=torch.get_num_threads())  # fmt: skip
    try:
        yield
    finally:
        model.backend = before


@torch.no_grad()
def _compared(model: ElasticModel, backend: OnnxBackend, level: Level, inputs: Sequence[Tokenized]) -> dict[str, float]:
    theirs: list[Tensor] = []
    ours: list[Tensor] = []
    for batch in inputs:
        for vectors, runs in ((theirs, model.backend), (ours, backend)):
            vectors.append(_seen(model.at(level), runs.hidden(batch, level), batch["attention_mask"]))
    wanted, found = torch.cat(theirs), torch.cat(ours)
    cosines = F.cosine_similarity(wanted, found, dim=-1)
    return {"max_diff": float((wanted - found).abs().max()), "cosine": float(cosines.mean())}


def _seen(model: ElasticModel, hidden: Tensor, attention_mask: Tensor) -> Tensor:
    """The vector that is answered, or that the head sees."""
    return model.pool(hidden, attention_mask) if model.head is None else summary(model.config, hidden, attention_mask)


def _refuse(level: Level, found: dict[str, float], precision: str) -> None:
    if precision == "fp32" and not found["max_diff"] <= MOST_DIFFERENCE:
        raise InputError(f"level {level}: its ONNX graph differs from PyTorch by {found['max_diff']:.1e}, "
                         f"more than {MOST_DIFFERENCE:.0e}; nothing was exported")  # fmt: skip
    if precision == "int8" and not found["cosine"] >= LEAST_COSINE:
        raise InputError(f"level {level}: its vectors in int8 have a mean cosine of {found['cosine']:.4f} with "
                         f"PyTorch's, less than {LEAST_COSINE}; nothing was exported")  # fmt: skip
