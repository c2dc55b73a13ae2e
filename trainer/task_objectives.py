"""From a task's configuration to the objective that trains it: reads the data, loads what teaches, tokenises."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from elasticlm.command import say
from elasticlm.errors import InputError
from elasticlm.model.configuration import Passages, TeacherReference
from elasticlm.model.elastic_model import ElasticModel
from elasticlm.model.teacher import load_model, passage_encoder
from elasticlm.retrieval.data_specs import has_labels, load_corpus
from elasticlm.retrieval.passage_index import PassageIndex
from elasticlm.trainer import mixture
from elasticlm.trainer.loop_options import LoopOptions
from elasticlm.trainer.mixture import Exclusion
from elasticlm.trainer.negatives import with_negatives
from elasticlm.trainer.objectives.align import ALIGN_TEMPERATURE, Align
from elasticlm.trainer.objectives.base import Objective
from elasticlm.trainer.objectives.classify import Classify
from elasticlm.trainer.objectives.rerank import Rerank
from elasticlm.trainer.objectives.retrieve import Retrieve, contrastive_temperature
from elasticlm.trainer.processes import Processes
from elasticlm.trainer.stored_vectors import stored_vectors
from elasticlm.trainer.tasks import AlignConfig, ClassifyConfig, RerankConfig, RetrieveConfig, TaskConfig
from elasticlm.trainer.training_pairs import (
    TrainingPairs,
    load_examples,
    load_pairs,
    load_sentence_pairs,
    texts_to_join,
)
from elasticlm.trainer.training_texts import TokenizedTexts

INDEX_PASSAGES, DATA_PASSAGES = 65536, 4096
TEXTS_SEED = 0  # of the texts that are drawn, whatever --seed: their stored vectors can then be used again


@dataclass(frozen=True, kw_only=True)
class Training:
    """What a run trains and on what, whatever the task.

    Attributes:
        name: folder or hub name of the model.
        data: data specs, drawn from in turn.
    """

    name: str
    model: ElasticModel
    data: list[str]
    split: str
    options: LoopOptions
    exclusion: Exclusion
    processes: Processes

    @property
    def examples(self) -> int:
        """How many examples the steps and the dev loss take."""
        return self.options.max_steps * self.options.batch_size + self.options.dev_examples

    def pairs(self, *, labels: bool = True) -> TrainingPairs:
        """As many of the split's pairs, or of its queries without labels, as the steps take, drawn at random."""
        found = load_pairs(self.data, self.split, self.exclusion, labels=labels)
        return found.sample(self.examples, self.options.seed)


def build_objective(config: TaskConfig, run: Training) -> tuple[Objective, Passages | None]:
    """Return the objective of a task, and what its passages go with; None: they are those of the trained model itself.

    Raises InputError where model, teacher, data and index do not fit together.
    """
    match config:
        case AlignConfig():
            teacher = aligned_teacher(config, run)
            return align(config, run, teacher), Passages("teacher", teacher.fingerprint())
        case RetrieveConfig():
            return retrieve(config, run), None
        case RerankConfig():
            return rerank(config, run), None
        case ClassifyConfig():
            return classify(config, run), None
    raise TypeError(f"no objective for {type(config).__name__}")


def align(config: AlignConfig, run: Training, teacher: ElasticModel) -> Align:
    """The alignment objective over the data's queries, and the index's passages or a sample of the data's."""
    options, processes = run.options, run.processes
    set_lengths(run.model, query=config.query_tokens)
    drawn = mixture.queries(run.data, run.split, config.queries or run.examples, TEXTS_SEED, run.exclusion)
    queries = TokenizedTexts.of(run.model, drawn, "query")
    teacher.to(processes.device)
    if config.index:
        index = PassageIndex.load(config.index, config.ids)
        index.check_against(teacher, lambda: teacher, lambda: [load_corpus(spec) for spec in run.data])
        rows = np.random.default_rng([options.seed, 4]).permutation(len(index))[: config.passages or INDEX_PASSAGES]
        vectors = torch.from_numpy(index.vectors(np.sort(rows)))
    else:
        drawn = mixture.passages(run.data, config.passages or DATA_PASSAGES, TEXTS_SEED, run.exclusion)
        tokenized = TokenizedTexts.of(teacher, drawn, "passage", config.passage_tokens)
        vectors = stored_vectors(teacher, tokenized, processes, desc="passages by the teacher").all()
    targets = stored_vectors(teacher, queries, processes, desc="queries by the teacher")
    say(f"align: {len(queries):,} queries, {len(vectors):,} passages")
    temperature = config.temperature or (ALIGN_TEMPERATURE if run.model.config.normalize else 1.0)
    return Align(run.model, queries, targets, vectors, temperature=temperature,
                 passages_per_step=config.passages_per_step, processes=processes, chunk_size=options.chunk_size,
                 seed=options.seed)  # fmt: skip


def aligned_teacher(config: AlignConfig, run: Training) -> ElasticModel:
    """What encodes the passages that the queries are aligned with; from now on the model's teacher.

    Raises InputError where it is not the one that the model was made from.
    """
    model = run.model
    if model.config.passages.encoder == "teacher":
        return passage_encoder(model, config.teacher)
    name = config.teacher or run.name
    teacher = load_model(name)
    model.config.teacher = teacher.config.teacher if config.teacher else TeacherReference(str(name))
    return teacher


def retrieve(config: RetrieveConfig, run: Training) -> Retrieve:
    """The supervised objective over the split's pairs, with BM25 negatives for the queries that training will see."""
    refuse_top(run.model, "retrieve")
    pairs, negatives = with_negatives(run.pairs(), config.negatives)
    set_lengths(run.model, query=config.query_tokens, passage=config.passage_tokens)
    passages = TokenizedTexts.of(run.model, pairs.passages, "passage")
    queries = TokenizedTexts.of(run.model, pairs.queries, "query")
    say(f"retrieve: {len(queries)} queries, {len(passages)} passages among their positives and negatives")
    return Retrieve(run.model, queries, passages, pairs.positives, negatives,
                    temperature=config.temperature or contrastive_temperature(run.model),
                    negatives_per_query=config.negatives, processes=run.processes,
                    chunk_size=run.options.chunk_size, seed=run.options.seed)  # fmt: skip


def rerank(config: RerankConfig, run: Training) -> Rerank:
    """The reranking objective over the split's pairs; the model gets a fresh head unless it is a reranker already."""
    labels = use_labels(config, run)
    model = run.model
    if model.config.task != "score":
        refuse_top(model, "rerank")
        model = model.with_head("score", seed=run.options.seed)
    set_lengths(model, query=config.query_tokens, passage=config.passage_tokens)
    teacher = fine_tuned_teacher(config.teacher, model, run.processes)
    drawn = config.negatives + (not labels)
    pairs, negatives = with_negatives(run.pairs(labels=labels), drawn, run=config.run, depth=config.negatives_depth,
                                      judged=True)  # fmt: skip
    queries, passages = texts_to_join(model, pairs)
    say(f"rerank: {len(queries):,} queries, {len(passages):,} passages among their positives and negatives"
        if labels else f"rerank without labels: {len(queries):,} queries, {len(passages):,} passages")  # fmt: skip
    return Rerank(model, queries, passages, pairs.positives if labels else None, negatives, negatives_per_query=drawn,
                  teacher=teacher, processes=run.processes, chunk_size=run.options.chunk_size,
                  seed=run.options.seed)  # fmt: skip


def classify(config: ClassifyConfig, run: Training) -> Classify:
    """The objective over labelled sentences; the model gets a fresh head unless it has one for these labels."""
    model, targets = run.model, None
    known = model.config.labels if model.config.task == "classify" else None
    if use_labels(config, run):
        data, targets = load_examples(run.data, run.split, known, run.exclusion)
        examples, labels = data.pairs, data.labels
    else:
        examples = load_sentence_pairs(run.data, run.split, run.exclusion)
        labels = known or load_model(str(config.teacher)).config.labels
    if known is None:
        refuse_top(model, "classify")
        model = model.with_head("classify", labels, seed=run.options.seed)
        if len(labels) == 1 and targets is not None:
            model.head.bias.data.fill_(float(targets.mean()))  # type: ignore[union-attr, operator]
    set_lengths(model, pair=config.pair_tokens)
    teacher = fine_tuned_teacher(config.teacher, model, run.processes)
    texts = TokenizedTexts.of_pairs(model, examples)
    say(f"classify{'' if targets is not None else ' without labels'}: {len(texts):,} examples, "
        f"labels {', '.join(labels)}")  # fmt: skip
    return Classify(model, texts, targets, teacher=teacher, processes=run.processes,
                    chunk_size=run.options.chunk_size)  # fmt: skip


def use_labels(config: RerankConfig | ClassifyConfig, run: Training) -> bool:
    """Whether the labels of the data are trained on, or a teacher's outputs alone.

    Raises InputError where there would be nothing to train on.
    """
    teacher = config.teacher or (run.model.top is not None and run.model.config.task != "embed")
    if config.labels is False and not teacher:
        raise InputError("--no-labels: there is nothing to train on then; give --teacher")
    if config.labels is not None or not teacher:
        return config.labels is not False
    return all(has_labels(spec, run.split) for spec in run.data)


def refuse_top(model: ElasticModel, task: str) -> None:
    """Raise InputError where level 100 is a teacher that was not fine-tuned for the task."""
    if model.top is not None:
        raise InputError(f"--task {task} trains all levels, but level 100 of this model is its teacher: fine-tune the "
                         "teacher first (--model TEACHER) and prune it, or prune with --top shared")  # fmt: skip


def set_lengths(
    model: ElasticModel, *, query: int | None = None, passage: int | None = None, pair: int | None = None
) -> None:
    """Set the length limits that a model is trained with, where given; it is evaluated and served with the same.

    Raises InputError where a limit exceeds the positions of the encoder.
    """
    most = model.positions
    for kind, tokens in (("query", query), ("passage", passage), ("pair", pair)):
        if tokens is not None and tokens > most:
            raise InputError(f"--{kind}-tokens {tokens}: the model has {most} positions")
        if tokens is not None:
            model.config.max_tokens = replace(model.config.max_tokens, **{kind: tokens})


def fine_tuned_teacher(
    name: str | Path | None, model: ElasticModel, processes: Processes, *, any_width: bool = False
) -> ElasticModel | None:
    """Load a fine-tuned teacher; its task, labels, vocabulary and, unless any will do, its width must be the model's.

    No name: the teacher on top of the model, if it has one, else None.
    """
    if not name:
        return model.top
    teacher = load_model(name).to(processes.device)
    ours, theirs = model.config, teacher.config
    if theirs.task != ours.task:
        raise InputError(f"--teacher {name}: its task is {theirs.task!r}, not {ours.task!r}")
    if theirs.labels != ours.labels:
        known = ", ".join(theirs.labels) or "none"
        raise InputError(f"--teacher knows the labels {known}, the data has {', '.join(ours.labels)}")
    if (
        not (any_width or theirs.hidden_size == ours.hidden_size)
        or teacher.tokenizer.get_vocab() != model.tokenizer.get_vocab()
    ):
        raise InputError(f"--teacher {name}: has another width or vocabulary than the model")
    return teacher
