"""The tasks of ``elasticlm finetune`` and their options: one frozen configuration per task.

This module has no heavy imports; elasticlm.trainer.task_objectives builds the objectives.
"""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Self

from elasticlm.errors import InputError
from elasticlm.hints import unknown
from elasticlm.trainer.loop_options import LoopOptions, docstrings, flag


@dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """Options of a task besides its data. The docstring of a field is the help text of its option."""

    summary: ClassVar[str]
    loop: ClassVar[LoopOptions] = LoopOptions()
    least: ClassVar[Mapping[str, int]] = {}

    @property
    def models(self) -> dict[str, str]:
        """Names of the other models that the task loads, by option."""
        teacher = getattr(self, "teacher", None)
        return {"--teacher": teacher} if teacher else {}

    def __post_init__(self) -> None:
        for name, least in self.least.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise InputError(f"{flag(name)}: expected {least} or more, not {value}")
        temperature = getattr(self, "temperature", None)
        if temperature is not None and not temperature > 0:
            raise InputError(f"--temperature: expected more than 0, not {temperature}")

    @classmethod
    def of(cls, task: str, args: argparse.Namespace) -> Self:
        """Return the configuration of a command line. Raises InputError for an option that the task does not have."""
        names = {field.name for field in fields(cls)}
        given = {name: getattr(args, name) for name in OPTION_NAMES if getattr(args, name) is not None}
        if foreign := [name for name in given if name not in names]:
            raise InputError(f"{flag(foreign[0])} does not go with --task {task}")
        return cls(**given)


@dataclass(frozen=True, kw_only=True)
class AlignConfig(TaskConfig):
    """Label-free alignment to the teacher's vectors."""

    summary = "query vectors of every level are trained to match the teacher's, no labels needed"
    loop = LoopOptions(levels_per_step="3", freeze_embeddings=True)
    least: ClassVar[Mapping[str, int]] = {
        "queries": 1,
        "passages": 1,
        "passages_per_step": 2,
        "query_tokens": 3,
        "passage_tokens": 3,
    }

    teacher: str | None = None
    """the model that encodes the passages (default: the teacher named in the model)"""
    index: str | None = None
    """an existing index of the teacher's passages: an index folder or a FAISS file"""
    ids: str | None = None
    """passage ids of a FAISS file, one per line"""
    queries: int | None = None
    """maximum number of training queries, sampled at random; the teacher encodes each once (default: as many as the
    steps need)"""
    passages: int | None = None
    """number of passages to compare with, sampled at random from --index (default: 65536) or, without an index, from
    the data and encoded by the teacher (default: 4096)"""
    query_tokens: int | None = None
    """length limit of queries, in training and from then on, in tokens (default: the model's limit)"""
    passage_tokens: int = 64
    """length limit of training passages, in tokens"""
    passages_per_step: int = 4096
    """number of passages compared in one step: the teacher's best passages for each query, filled up at random"""
    temperature: float | None = None
    """temperature of the distribution over passages (default: 0.02 if vectors have length 1, else 1)"""


@dataclass(frozen=True, kw_only=True)
class RetrieveConfig(TaskConfig):
    """Supervised retrieval."""

    summary = "supervised retrieval with in-batch and BM25 negatives, passages by the largest level"
    loop = LoopOptions(batch_size=32, lr=1e-4)
    least: ClassVar[Mapping[str, int]] = {"query_tokens": 3, "passage_tokens": 3, "negatives": 1}

    query_tokens: int | None = None
    """length limit of queries, in training and from then on, in tokens (default: the model's limit)"""
    passage_tokens: int | None = None
    """length limit of passages, in training and from then on, in tokens (default: the model's limit)"""
    negatives: int = 1
    """hard negatives per query and step"""
    temperature: float | None = None
    """temperature of the distribution over passages (default: 0.05 if vectors have length 1, else 1)"""


@dataclass(frozen=True, kw_only=True)
class RerankConfig(TaskConfig):
    """Reranking."""

    summary = "score a query with each of its passages, against passages that a first stage ranks high"
    loop = LoopOptions(batch_size=16, chunk_size=16, lr=3e-4)
    least: ClassVar[Mapping[str, int]] = {"query_tokens": 3, "passage_tokens": 3, "negatives": 1, "negatives_depth": 1}

    query_tokens: int | None = None
    """length limit of queries, in training and from then on, in tokens (default: the model's limit)"""
    passage_tokens: int | None = None
    """length limit of passages, in training and from then on, in tokens (default: the model's limit)"""
    teacher: str | None = None
    """a reranker that was fine-tuned whole: an artifact or a sequence classification model with one label; its scores
    and hidden states are matched, next to the labels if there are any (default: level 100 of the model, if that is a
    teacher)"""
    labels: bool | None = None
    """use the judgements of the data (default: if it has any, or without --teacher)"""
    negatives: int = 7
    """hard negatives per query and step"""
    run: str | None = None
    """run of a retriever over the training queries in TREC format, perhaps .gz; negatives are drawn from its best
    passages, anew in each step (default: judged candidates that are not relevant, then the best passages of BM25)"""
    negatives_depth: int | None = None
    """number of best passages of the first stage that negatives are drawn from (default: 100 of --run, 30 of BM25)"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.negatives_depth is not None and self.negatives_depth < self.negatives:
            raise InputError(f"--negatives-depth {self.negatives_depth}: --negatives needs {self.negatives} or more")


@dataclass(frozen=True, kw_only=True)
class ClassifyConfig(TaskConfig):
    """Classification and regression."""

    summary = "labelled sentences or pairs, classes or values"
    loop = LoopOptions(batch_size=32, lr=3e-4)
    least: ClassVar[Mapping[str, int]] = {"pair_tokens": 3}

    pair_tokens: int | None = None
    """length limit of a sentence or pair, in training and from then on, in tokens (default: the model's limit)"""
    teacher: str | None = None
    """a classifier that was fine-tuned whole: an artifact or a sequence classification model; its outputs and hidden
    states are matched, next to the labels if there are any (default: level 100 of the model, if that is a teacher)"""
    labels: bool | None = None
    """use the labels of the data (default: if it has any, or without --teacher)"""


TASKS: dict[str, type[TaskConfig]] = {
    "align": AlignConfig,
    "retrieve": RetrieveConfig,
    "rerank": RerankConfig,
    "classify": ClassifyConfig,
}
OPTION_NAMES = tuple(dict.fromkeys(field.name for config in TASKS.values() for field in fields(config)))


def task_named(name: str) -> type[TaskConfig]:
    """Return a task's configuration class; raises InputError for an unknown task."""
    if name not in TASKS:
        raise InputError(f"--task: {unknown('task', name, TASKS)}")
    return TASKS[name]


def add_task_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of all tasks; the help of an option that several tasks share describes it for each task."""
    for name in OPTION_NAMES:
        texts: dict[str, list[str]] = {}
        kind: Any = str
        for task, config in TASKS.items():
            for field in fields(config):
                if field.name == name:
                    kind = _type(field.type)
                    default = "" if field.default is None else f" (default: {field.default})"
                    texts.setdefault(" ".join(docstrings(config, TaskConfig)[name].split()) + default, []).append(task)
        described = "; ".join(f"{', '.join(tasks)}: {text}" for text, tasks in texts.items())
        if kind is bool:
            parser.add_argument(flag(name), action=argparse.BooleanOptionalAction, default=None, help=described)
        else:
            parser.add_argument(flag(name), type=kind, metavar=name.rsplit("_")[-1].upper(), help=described)


def _type(annotation: Any) -> type:
    """Return int, float or bool if the annotation allows it, else str."""
    kinds = getattr(annotation, "__args__", (annotation,))
    return next((kind for kind in (int, float, bool) if kind in kinds), str)
