"""Exporting levels: one alone as an artifact, or all of them as ONNX graphs."""

import argparse
from collections.abc import Container, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from elasticlm import command
from elasticlm.backend import onnx_export
from elasticlm.backend.graph_hashes import graphs_folder
from elasticlm.command import progress, say
from elasticlm.files import new_folder, sha256_file
from elasticlm.model.configuration import TeacherReference
from elasticlm.model.elastic_model import ElasticModel
from elasticlm.model.folder import LATENCY_FILE, WEIGHTS_FILE
from elasticlm.model.structure import ElasticStructure, Level, level_name, parse_level
from elasticlm.model.teacher import load_model
from elasticlm.retrieval.data_specs import RetrievalData, load_retrieval
from elasticlm.schedule.latency import LatencyTable, read_tables
from elasticlm.trainer.objectives.base import reciprocal_ranks

QUERIES, PASSAGES = 256, 2048  # that graphs are compared on


def export_level(args: argparse.Namespace) -> None:
    """Write one level as an artifact of its own."""
    level = parse_level(args.level)
    model = load_model(args.model)
    alone = export(model, args.model, level)
    file = Path(args.model) / LATENCY_FILE
    with new_folder(args.output, overwrite=args.overwrite) as folder:
        alone.save_pretrained(folder)
        for table in read_tables(file) if file.exists() else []:
            cells = [cell for cell in table.cells if cell.level == level]
            if cells:
                LatencyTable(cells, table.setup, table.notes).write(folder / LATENCY_FILE)
    parameters = sum(p.numel() for p in alone.parameters())
    command.print_table([{"level": level_name(level), "parameters": parameters, "output": args.output}])
    command.print_result({"output": args.output, "level": level, "parameters": parameters})


def export(model: ElasticModel, name: str, level: Level) -> ElasticModel:
    """Cut one level out of a model. Its passages stay with what encoded them.

    Where that is the model's own largest level, the model (under ``name``) becomes the teacher of the smaller one.
    """
    alone = model.cut(ElasticStructure({level: model.structures[level]}))
    if model.config.passages.encoder == "largest" and level != model.structures.largest:
        alone.config.teacher = TeacherReference(name, sha256_file(Path(name) / WEIGHTS_FILE))
        alone.config.passages = replace(model.config.passages, encoder="teacher")
    return alone


def export_graphs(args: argparse.Namespace) -> None:
    """Write every level's graph in each precision, and report how close it is to PyTorch."""
    model = ElasticModel.from_pretrained(args.model)
    sample = load_retrieval(args.data, args.split)
    queries, passages = sample.queries[:QUERIES], passages_of(sample)
    ranking = Ranking(model, sample) if model.config.task == "embed" else None
    result, rows = {}, []
    for precision in args.onnx:
        bar = progress(total=len(model.levels), desc=f"graphs in {precision}", unit="level")
        found = onnx_export.export(model, args.model, precision, queries, passages=passages, on_level=bar.update,
                                   top_precision=args.top_precision if precision == "int8" else "fp32")  # fmt: skip
        bar.close()
        graphs = ElasticModel.from_pretrained(args.model, backend="onnx", precision=precision)
        for level in model.levels:
            name = level_name(level)
            if ranking is not None:
                found[name] |= {"RR@10": ranking.measure(graphs, level), "RR@10 torch": ranking.measure(model, level)}
            size = (graphs_folder(args.model, precision) / f"{name}.onnx").stat().st_size
            rows.append({"precision": precision, "level": name, "MiB": size / 2**20} | found[name])
        result[precision] = found
    command.print_table(rows)
    command.print_result({"output": str(graphs_folder(args.model, "").parent), "onnx": result})


def passages_of(sample: RetrievalData) -> list[str]:
    """Return a passage for each of the first queries: its first relevant one, or any where the corpus lacks those."""
    row = {pid: i for i, pid in enumerate(sample.passage_ids)}
    first = [_first_relevant(sample.qrels[qid], row) for qid in sample.query_ids[:QUERIES]]
    return [sample.passages[row[pids[0]] if pids else i % len(row)] for i, pids in enumerate(first)]


def _first_relevant(grades: Mapping[str, int], known: Container[str]) -> list[str]:
    """Return the first relevant passage among those that are known, in a list; an empty one if there is none."""
    return [pid for pid, grade in grades.items() if grade > 0 and pid in known][:1]


class Ranking:
    """What a change of vectors costs in RR@10: queries over a few passages, all encoded by the largest level.

    Args:
        sample: a split; its first queries, their passages, and others up to 2,048 in all.
    """

    def __init__(self, model: ElasticModel, sample: RetrievalData) -> None:
        row = {pid: i for i, pid in enumerate(sample.passage_ids)}
        found = ((query, row[pid]) for qid, query in zip(sample.query_ids, sample.queries, strict=True)
                 for pid in _first_relevant(sample.qrels[qid], row))  # fmt: skip
        self.queries, first = map(list, zip(*islice(found, QUERIES), strict=True))
        positives = np.array(first)
        others = np.setdiff1d(np.arange(len(row)), positives)[: max(0, PASSAGES - len(positives))]
        rows = np.union1d(positives, others)
        self._labels = torch.from_numpy(np.searchsorted(rows, positives))
        say(f"{sample.spec}, {sample.split}: {len(self.queries)} queries over {len(rows):,} passages")
        self._passages = self._embed(model, [sample.passages[i] for i in rows], model.structures.largest, "passage")
        self._torch: dict[Level, float] = {}

    def measure(self, model: ElasticModel, level: Level) -> float:
        """RR@10 of a level's queries; those of PyTorch are embedded once."""
        if model.backend.name == "torch" and level in self._torch:
            return self._torch[level]
        scores = self._embed(model, self.queries, level, "query") @ self._passages.T
        found = round(float(reciprocal_ranks(scores, self._labels).mean()), 4)
        if model.backend.name == "torch":
            self._torch[level] = found
        return found

    @staticmethod
    def _embed(model: ElasticModel, texts: Sequence[str], level: Level, kind: str) -> Tensor:
        return model.embed(texts, level=level, kind=kind, show_progress=kind == "passage")  # type: ignore[arg-type]
