"""From a task's configuration to the objective that trains it: reads the data, loads what teaches, tokenises."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from elasticlm.command import say
from elasticlm.errors import InputError
from elasticlm.model.configuration import Passages, TeacherReference
from elasticlm.model.elastic_model import ElasticModel
from elasticlm.model.teacher import load_model, passage_encoder
from elasticlm.retrieval.data_specs import load_corpus
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
from elasticlm.trainer.training_pairs import TrainingPairs, load_examples, load_pairs, texts_to_join
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

    def pairs(self) -> TrainingPairs:
        """As many of the split's pairs as the steps take, drawn at random."""
        return load_pairs(self.data, self.split, self.exclusion).sample(self.examples, self.options.seed)


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
    drawn = mixture.queries(run.data, run.split, config.queries or run.examples, TEXTS_SEED, run.exclusion)
    queries = TokenizedTexts.of(run.model, drawn, "query", config.query_tokens)
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
    pairs, negatives = with_negatives(run.pairs(), config.negatives)
    passages = TokenizedTexts.of(run.model, pairs.passages, "passage", config.passage_tokens)
    queries = TokenizedTexts.of(run.model, pairs.queries, "query", config.query_tokens)
    say(f"retrieve: {len(queries)} queries, {len(passages)} passages among their positives and negatives")
    return Retrieve(run.model, queries, passages, pairs.positives, negatives,
                    temperature=config.temperature or contrastive_temperature(run.model),
                    negatives_per_query=config.negatives, processes=run.processes,
                    chunk_size=run.options.chunk_size, seed=run.options.seed)  # fmt: skip


def rerank(config: RerankConfig, run: Training) -> Rerank:
    """The reranking objective over the split's pairs; the model gets a fresh head unless it is a reranker already."""
    pairs, negatives = with_negatives(run.pairs(), config.negatives, run=config.run, judged=True)
    model = run.model
    if model.config.task != "score":
        model = model.with_head("score", seed=run.options.seed)
    teacher = fine_tuned_teacher(config.teacher, model, run.processes)
    queries, passages, limit = texts_to_join(model, pairs, config.query_tokens, config.passage_tokens)
    say(f"rerank: {len(queries):,} queries, {len(passages):,} passages among their positives and negatives")
    return Rerank(model, queries, passages, pairs.positives, negatives, negatives_per_query=config.negatives,
                  teacher=teacher, max_tokens=limit, processes=run.processes, chunk_size=run.options.chunk_size,
                  seed=run.options.seed)  # fmt: skip


def classify(config: ClassifyConfig, run: Training) -> Classify:
    """The objective over labelled sentences; the model gets a fresh head unless it has one for these labels."""
    model = run.model
    known = model.config.labels if model.config.task == "classify" else None
    data, targets = load_examples(run.data, run.split, known, run.exclusion)
    texts = TokenizedTexts.of_pairs(model, data.pairs)
    if known is None:
        model = model.with_head("classify", data.labels, seed=run.options.seed)
        if len(data.labels) == 1 and model.head is not None:
            model.head.bias.data.fill_(float(targets.mean()))
    say(f"classify: {len(texts):,} examples, labels {', '.join(data.labels)}")
    teacher = fine_tuned_teacher(config.teacher, model, run.processes)
    return Classify(model, texts, targets, teacher=teacher, processes=run.processes,
                    chunk_size=run.options.chunk_size)  # fmt: skip


def fine_tuned_teacher(name: str | Path | None, model: ElasticModel, processes: Processes) -> ElasticModel | None:
    """Load a fine-tuned teacher; its task, labels, width and vocabulary must be the model's. No name: None."""
    if not name:
        return None
    teacher = ElasticModel.from_pretrained(name).to(processes.device)
    ours, theirs = model.config, teacher.config
    if theirs.task != ours.task:
        raise InputError(f"--teacher {name}: its task is {theirs.task!r}, not {ours.task!r}")
    if theirs.labels != ours.labels:
        known = ", ".join(theirs.labels) or "none"
        raise InputError(f"--teacher knows the labels {known}, the data has {', '.join(ours.labels)}")
    if theirs.hidden_size != ours.hidden_size or teacher.tokenizer.get_vocab() != model.tokenizer.get_vocab():
        raise InputError(f"--teacher {name}: has another width or vocabulary than the model")
    return teacher
