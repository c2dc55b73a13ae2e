"""Artifacts with graphs in int8: as good as exported, or damaged as another processor could damage their answers."""

import onnx
import pytest
from onnx import numpy_helper

from elasticlm.backend import graph_hashes, onnx_export
from elasticlm.backend.graph_hashes import graphs_folder
from elasticlm.model.elastic_model import ElasticModel
from elasticlm.schedule.latency import Cell, LatencyTable, Setup

TEXTS = ["how does ice form", "the river and the rain", "a glacier", "why is the moon cold", "snow and wind"]
INT8_MS, FP32_MS = {100: 4.0, 50: 2.0, 10: 1.0}, {100: 12.0, 50: 6.0, 10: 3.0}


def table(means_ms, setup):
    cells = [
        Cell(level=level, rows=rows, tokens=tokens, mean_ms=ms * rows, p50_ms=ms * rows, p95_ms=ms * rows, p99_ms=None,
             runs=9)
        for level, ms in means_ms.items() for rows in (1, 4) for tokens in (8, 16)
    ]  # fmt: skip
    return LatencyTable(cells, setup)


def make(artifact, folder, task="embed", labels=None):
    """An archive's folder with an artifact of a task, exported in int8, and its latency tables."""
    model = ElasticModel.from_pretrained(artifact)
    (model if task == "embed" else model.with_head(task, labels, seed=1)).save_pretrained(folder / "artifact")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx_export, "LEAST_COSINE", 0.5)  # a tiny random model is no match for eight bits
        onnx_export.export(ElasticModel.from_pretrained(folder / "artifact"), folder / "artifact", "int8", TEXTS)
    table(INT8_MS, Setup(backend="onnx", precision="int8")).write(folder / "artifact/latency.csv")
    table(FP32_MS, Setup()).write(folder / "artifact/latency.csv")
    return folder


def damage(artifact, level):
    """Multiply a level's first scales of weights by 8, and list the file as the export would have."""
    file = graphs_folder(artifact, "int8") / f"{level}.onnx"
    graph = onnx.load(file)
    quantised = next(node for node in graph.graph.node if node.op_type == "DynamicQuantizeMatMul")
    scales = next(each for each in graph.graph.initializer if each.name == quantised.input[2])
    scales.CopyFrom(numpy_helper.from_array(8 * numpy_helper.to_array(scales), scales.name))
    onnx.save(graph, file)
    graph_hashes._list(artifact, "int8", graph_hashes._hashes(file.parent))
