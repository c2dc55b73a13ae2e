"""The rows of the paper's tables: which system each one is, and where its figures will be."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from elasticlm.errors import InputError
from elasticlm.trainer.paper.jobs import Job
from elasticlm.trainer.paper.scales import FOLDER
from elasticlm.trainer.paper.shapes import Shape, Sizes
from elasticlm.trainer.paper.systems import Lab

DYNABERT_LEVELS = (50, 30, 15)
EXITS = ("6L", "4L", "2L")
GLUE_SCORE = "GLUE Score"
OF_ANSWERS = {"R@5": "Success@5", "R@20": "Success@20", "R@100": "Success@100"}
"""DPR's measures: whether an answer is in the passages found."""
MEASURES = {"MRR@10": "RR@10", "MRR@100": "RR@100"}


@dataclass(frozen=True)
class Cell:
    """Where a figure is: a measure of a row of an evaluation.

    Attributes:
        row: None: that of the only level that was measured.
    """

    file: Path
    measure: str
    row: str | None = None


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
        method, structure, paper_gflops, paper: as the paper has them; ``paper`` are its figures by column.
        shape: the structure at this scale.
        cells: where this scale's figures are, by column; none where the scale has no such set.
        jobs: what must be done for them, in order.
    """

    method: str
    structure: str
    paper_gflops: float | None
    paper: Mapping[str, float | None]
    shape: str
    gflops: float
    cells: Mapping[str, Cell]
    jobs: tuple[Job, ...]


@dataclass(frozen=True)
class Table:
    """A table of the paper.

    Attributes:
        teacher: method of the row that the others keep a share of.
        against: method -> method that it is tested against within a block.
    """

    name: str
    title: str
    columns: tuple[str, ...]
    teacher: str
    against: Mapping[str, str]
    blocks: tuple[tuple[Row, ...], ...]

    @property
    def rows(self) -> list[Row]:
        return [row for block in self.blocks for row in block]


def read_table(name: str, lab: Lab) -> Table:
    """Return a table of the paper with the jobs that fill it at a scale."""
    content = yaml.safe_load((FOLDER / "tables.yaml").read_text("utf-8"))[name]
    columns = tuple(content["columns"])

    def row(method: str, structure: str, gflops: float | None, *figures: float | None) -> Row:
        shape = Shape.of(structure, lab.base)
        lab.jobs.taken()
        cells = KINDS[name](lab, method, shape, columns)
        sizes = Sizes.read(lab.scale.large) if shape.large else lab.base
        return Row(method, structure, gflops, dict(zip(columns, figures, strict=True)), str(shape),
                   shape.share(lab.base) * sizes.gflops, cells, tuple(lab.jobs.taken()))  # fmt: skip

    blocks = tuple(tuple(row(*each) for each in block) for block in content["blocks"])
    return Table(name, content["title"], columns, content["teacher"], content["against"], blocks)


def glue_cells(lab: Lab, method: str, shape: Shape, columns: tuple[str, ...]) -> dict[str, Cell]:
    """Table 4: a system fine-tuned for every set of GLUE that the scale has."""
    return {column: Cell(*_of_glue(lab, method, shape, column)) for column in columns if column in lab.scale.glue}


def _of_glue(lab: Lab, method: str, shape: Shape, column: str) -> tuple[Path, str, str | None]:
    measure = lab.scale.glue[column]["measure"]
    row = None if shape.level is None else f"{shape.level:g}"
    whole = sum(lab.levels) / 100
    match method:
        case "BERT":
            return lab.classified(column, "teacher", lab.glue_teacher(column)), measure, "teacher"
        case "KD":
            return lab.kd(column, _level(shape)), measure, row
        case "DynaBERT":
            return lab.dynabert(column, DYNABERT_LEVELS)[_level(shape)], measure, row
        case "MoEBERT":
            return lab.moebert(column, _level(shape)), measure, row
        case "EarlyExitBERT":
            return lab.early_exit(column, _exits(lab))[_layers(shape)], measure, None
        case "ElasticLM":
            return lab.classifier(column, "elasticlm", lab.distilled("bert"), whole)[1], measure, row
        case "ElasticLM w/o elasticity":
            alone = lab.distilled("bert", _level(shape))
            return lab.classifier(column, f"elasticlm_alone_{row}", alone, _level(shape) / 100)[1], measure, row
    student = lab.small_student(method.lower(), shape)
    return lab.classifier(column, f"{method.lower()}_{shape}", student, shape.share(lab.base))[1], measure, None


def retrieval_cells(lab: Lab, method: str, shape: Shape, columns: tuple[str, ...]) -> dict[str, Cell]:
    """Tables 5, 7, 8 and 9: a system fine-tuned to retrieve in every set."""
    cells = {}
    for column in columns:
        name, _, shown = column.rpartition(" ")
        if name not in lab.scale.retrieval:
            continue
        answers = lab.scale.retrieval[name].get("measures") == "answers"
        measure = OF_ANSWERS.get(shown, shown) if answers else MEASURES.get(shown, shown)
        file, row = _of_retrieval(lab, method, shape, name)
        cells[column] = Cell(file, measure, row)
    return cells


def _of_retrieval(lab: Lab, method: str, shape: Shape, name: str) -> tuple[Path, str | None]:
    row = None if shape.level is None else f"{shape.level:g}"
    whole = sum(lab.levels) / 100
    elastic = {
        "ElasticLM": lambda: ("elasticlm", lab.distilled("bert")),
        "ElasticDenser": lambda: ("elasticdenser", lab.distilled("condenser")),
        "ElasticDenser w/ cascade": lambda: ("cascade", lab.distilled("condenser", start=lab.distilled("bert"))),
        "ElasticDenser w/ head": lambda: ("head", lab.distilled("condenser", variant="head")),
        "ElasticDenser from large": lambda: ("from_large", lab.distilled("large")),
        "ElasticDenser progressive": lambda: ("progressive", lab.distilled("large", start=lab.distilled("condenser"))),
    }
    if method in elastic:
        label, model = elastic[method]()
        return lab.retriever(name, label, model, whole)[1], row
    match method:
        case "BERT" | "Condenser":
            role = "large" if shape.large else method.lower()
            return lab.retriever(name, role, lab.teacher(role), lab.passes(role))[1], "teacher"
        case "EarlyExitBERT":
            return lab.exits_that_retrieve(name, _exits(lab))[_layers(shape)], None
        case "ElasticLM w/o elasticity" | "ElasticDenser w/o elasticity":
            role = "bert" if method.startswith("ElasticLM") else "condenser"
            model = lab.distilled(role, _level(shape))
            return lab.retriever(name, f"alone_{role}_{row}", model, _level(shape) / 100)[1], row
    system = "relations" if method == "ElasticLM random" else method.lower()
    student = lab.small_student(system, shape)
    return lab.retriever(name, f"{system}_{shape}", student, shape.share(lab.base))[1], None


def reranking_cells(lab: Lab, method: str, shape: Shape, columns: tuple[str, ...]) -> dict[str, Cell]:
    """Table 6: a reranker behind a first stage; documents by HDCT, passages by BM25 or ElasticDenser."""
    name = "MC Psg" if method.startswith(("BM25", "ElasticDenser")) else "MC Doc"
    if name not in lab.scale.reranking:
        return {}
    file, row = _of_reranking(lab, method, shape, name)
    return {
        column: Cell(file, MEASURES[column.rpartition(" ")[2]], row) for column in columns if column.startswith(name)
    }


def _of_reranking(lab: Lab, method: str, shape: Shape, name: str) -> tuple[Path, str | None]:
    row = None if shape.level is None else f"{shape.level:g}"
    whole, share = sum(lab.levels) / 100, shape.share(lab.base)
    if method in ("HDCT+BERT", "HDCT+PROP"):
        role = method.rpartition("+")[2].lower()
        return lab.reranked(name, role, lab.reranker(name, role, {"model": lab.teacher(role)}, 1.0)), None
    if method == "HDCT+ElasticRanker":
        return lab.reranked(name, "elasticranker", _elastic_ranker(lab, name, whole)), row
    if method == "HDCT+ElasticRanker w/o elasticity":
        label = f"elasticranker_alone_{row}"
        alone = lab.distilled("prop", _level(shape))
        return lab.reranked(name, label, lab.reranker(name, label, {"model": alone}, share)), row
    if method == "ElasticDenser+ElasticRanker":
        lab.retriever(name, "elasticdenser", lab.distilled("condenser"), whole)
        run = lab.run_of(name, "elasticdenser", _level(shape))
        ranker = _elastic_ranker(lab, name, whole)
        return lab.reranked(name, f"pipeline_{row}", ranker, run=run, level=shape.level), row
    teacher = lab.reranker(name, "bert", {"model": lab.teacher("bert")}, 1.0)
    system, general = {"BERT+SimTinyBERT": ("simtinybert", "tinybert"),
                       "BM25+LM-Ranker Distil": ("kd", "lm-distil")}[method]  # fmt: skip
    options = {"model": lab.small_student(general, shape), "teacher": teacher}
    label = f"{system}_{shape}"
    return lab.reranked(name, label, lab.reranker(name, label, options, share, baseline=system)), None


def _elastic_ranker(lab: Lab, name: str, whole: float) -> Path:
    return lab.reranker(name, "elasticranker", {"model": lab.distilled("prop")}, whole)


def _exits(lab: Lab) -> list[int]:
    return [_layers(Shape.of(text, lab.base)) for text in EXITS]


def _level(shape: Shape) -> float:
    if shape.level is None:
        raise InputError(f"{shape}: expected a percentage")
    return shape.level


def _layers(shape: Shape) -> int:
    assert shape.layers is not None
    return shape.layers


KINDS: dict[str, Callable[[Lab, str, Shape, tuple[str, ...]], dict[str, Any]]] = {
    "table4": glue_cells,
    "table5": retrieval_cells,
    "table6": reranking_cells,
    "table7": retrieval_cells,
    "table8": retrieval_cells,
    "table9": retrieval_cells,
}
