"""``elasticlm finetune``: train every level of an elastic model for a task."""

import argparse
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from elasticlm import command
from elasticlm.command import say
from elasticlm.errors import InputError
from elasticlm.model.configuration import Calibration, Fusion, Passages, TeacherReference
from elasticlm.model.elastic_model import ElasticModel
from elasticlm.model.teacher import load_model, passage_encoder
from elasticlm.retrieval.data_specs import load_corpus
from elasticlm.retrieval.passage_index import PassageIndex
from elasticlm.trainer import mixture
from elasticlm.trainer.checkpoints import Checkpoints
from elasticlm.trainer.loop import train
from elasticlm.trainer.loop_options import (
    LoopOptions,
    add_data_options,
    add_options,
    at_least,
    check_temperature,
    options_of,
)
from elasticlm.trainer.mixture import Exclusion
from elasticlm.trainer.negatives import OF_RERANKERS, with_negatives
from elasticlm.trainer.objectives import ALIGN_TEMPERATURE, Align, Classify, Rerank, Retrieve, contrastive_temperature
from elasticlm.trainer.processes import Processes
from elasticlm.trainer.stored_vectors import stored_vectors
from elasticlm.trainer.training_pairs import TrainingPairs, load_examples, load_pairs, texts_to_join
from elasticlm.trainer.training_texts import TokenizedTexts

DEFAULTS = {
    "align": LoopOptions(levels_per_step="3", freeze_embeddings=True),
    "retrieve": LoopOptions(batch_size=32, lr=1e-4),
    "rerank": LoopOptions(batch_size=16, chunk_size=16, lr=3e-4),
    "classify": LoopOptions(batch_size=32, lr=3e-4),
}
SETTINGS = {  # what a resumed run must agree on, besides the loop's options
    "align": (
        "task",
        "data",
        "split",
        "exclude",
        "index",
        "queries",
        "passages",
        "query_tokens",
        "passage_tokens",
        "passages_per_step",
        "temperature",
    ),
    "retrieve": ("task", "data", "split", "exclude", "query_tokens", "passage_tokens", "negatives", "temperature"),
    "rerank": ("task", "data", "split", "exclude", "query_tokens", "passage_tokens", "negatives", "run", "teacher"),
    "classify": ("task", "data", "split", "exclude", "teacher"),
}
INDEX_PASSAGES, DATA_PASSAGES = 65536, 4096
DRAWN = 0  # seed of the texts drawn, whatever --seed: their stored vectors are found again
NEGATIVES = {"retrieve": 1, "rerank": OF_RERANKERS}


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = command.parser("elasticlm finetune", __doc__.partition(": ")[2])
    parser.add_argument("--task", required=True, metavar="|".join(DEFAULTS), help="align: pull queries at every level "
                        "to where the teacher puts them, no labels needed; retriever: supervised retrieval with in-batch "
                        "and BM25 negatives, passages by the largest level; reranker: score a query with each of its "
                        "passages against those that a retriever ranks high; classify: labelled sentences or pairs, "
                        "classes or values")  # fmt: skip
    parser.add_argument("--model", required=True, metavar="DIR", help="elastic model to start from (see prune)")
    parser.add_argument("--teacher", help="align: what encodes the passages (default: as named in the model); "
                        "reranker, classify: a fine-tuned one of that task, whose outputs are matched too")  # fmt: skip
    add_data_options(parser, "beir:DIR, text:FILE, hf:NAME[/CONFIG] or pydoc; align: glue:DIR too, for its sentences; "
                     "classify: glue:DIR or hf:NAME[/CONFIG]")  # fmt: skip
    parser.add_argument("--index", metavar="DIR|FILE.faiss", help="align: an existing index of the teacher's passages")
    parser.add_argument("--ids", metavar="FILE.txt", help="align: passage ids of an index made elsewhere, one a line")
    parser.add_argument("--queries", type=int, metavar="N", help="align: most queries to train on, drawn at random; "
                        "the teacher encodes each once (default: as many as the steps take)")  # fmt: skip
    parser.add_argument("--passages", type=int, metavar="N", help="align: passages that training knows, drawn at "
                        f"random: of --index (default {INDEX_PASSAGES}), else of the data, encoded by the teacher "
                        f"(default {DATA_PASSAGES})")  # fmt: skip
    parser.add_argument("--query-tokens", type=int, metavar="N", help="length limit of the queries trained with, in "
                        "tokens (default: the model's)")  # fmt: skip
    parser.add_argument("--passage-tokens", type=int, metavar="N", help="length limit of the passages trained "
                        "with, in tokens (default: align 64, else 128)")  # fmt: skip
    parser.add_argument("--passages-per-step", type=int, default=4096, metavar="N", help="align: passages that a step "
                        "compares with: the best of each query by the teacher, others at random")  # fmt: skip
    parser.add_argument("--negatives", type=int, metavar="M", help="hard negatives a query and step (default: retriever "
                        "1, reranker 7)")  # fmt: skip
    parser.add_argument("--run", metavar="FILE", help="reranker: a retriever's run over the training queries, in TREC "
                        "form, whose best are the negatives (default: what the set's candidates "
                        "refuse, then BM25's best, made on the spot)")  # fmt: skip
    parser.add_argument("--temperature", type=float, help="of the distribution over passages (default: align .02, "
                        "retriever .05; 1 where vectors do not have length 1)")  # fmt: skip
    add_options(parser, DEFAULTS)
    args = parser.parse_args(argv)
    if args.task not in DEFAULTS:
        raise InputError(f"--task {args.task} is not available yet; available: {', '.join(DEFAULTS)}")
    if args.negatives is None:
        args.negatives = NEGATIVES.get(args.task)
    at_least(args, 1, "queries", "passages", "passages_per_step", "negatives")
    at_least(args, 3, "query_tokens", "passage_tokens")
    check_temperature(args)
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    options = options_of(args, DEFAULTS[args.task])
    checkpoints = Checkpoints(args.output, resume=args.resume, overwrite=args.overwrite)
    torch.set_num_threads(options.threads or torch.get_num_threads())
    processes = Processes(options.precision)
    model = ElasticModel.from_pretrained(args.model)
    settings = {name: getattr(args, name) for name in SETTINGS[args.task]} | {"model": model.fingerprint()}
    exclusion = Exclusion(args.exclude)
    if args.task == "align":
        teacher = teacher_of(args, model)
        objective = align(args, options, model, teacher, exclusion, processes)
        passages = Passages("teacher", teacher.fingerprint())
    elif args.task == "retrieve":
        objective = retriever(args, options, model, exclusion, processes)
        passages = None
    elif args.task == "rerank":
        objective = reranker(args, options, model, exclusion, processes)
    else:
        objective = classify(args, options, model, exclusion, processes)

    def sign(trained: ElasticModel) -> None:
        trained.config.calibration, trained.config.fusion = Calibration(), Fusion()  # those were of the scores before
        if trained.config.task == "embed":
            trained.config.passages = passages or Passages("largest", trained.fingerprint())

    report = train(objective, options, checkpoints, settings, sign=sign, facts=exclusion.report())
    if processes.is_main:
        print_report(args.output, report)


def align(
    args: argparse.Namespace,
    options: LoopOptions,
    model: ElasticModel,
    teacher: ElasticModel,
    exclusion: Exclusion,
    processes: Processes,
) -> Align:
    """The alignment objective over the data's queries, and the index's passages or a sample of the data's."""
    wanted = args.queries or options.max_steps * options.batch_size + options.dev_examples
    drawn = mixture.queries(args.data, args.split, wanted, DRAWN, exclusion)
    queries = TokenizedTexts.of(model, drawn, "query", args.query_tokens)
    teacher.to(processes.device)
    if args.index:
        index = PassageIndex.load(args.index, args.ids)
        index.check(teacher, lambda: teacher)
        if index.fingerprint is None:
            corpora = [load_corpus(spec) for spec in args.data]
            known = {pid: text for corpus in corpora for pid, text in zip(corpus.ids, corpus.passages, strict=True)}
            index.check_sample(known, lambda passages: teacher.embed(passages, kind="passage").numpy())
        rows = np.random.default_rng([options.seed, 4]).permutation(len(index))[: args.passages or INDEX_PASSAGES]
        vectors = torch.from_numpy(index.vectors()[np.sort(rows)])
    else:
        drawn = mixture.passages(args.data, args.passages or DATA_PASSAGES, DRAWN, exclusion)
        tokenized = TokenizedTexts.of(teacher, drawn, "passage", args.passage_tokens or 64)
        vectors = stored_vectors(teacher, tokenized, processes, desc="passages by the teacher").all()
    targets = stored_vectors(teacher, queries, processes, desc="queries by the teacher")
    say(f"align: {len(queries):,} queries, {len(vectors):,} passages")
    temperature = args.temperature or (ALIGN_TEMPERATURE if model.config.normalize else 1.0)
    return Align(model, queries, targets, vectors, temperature=temperature, passages_per_step=args.passages_per_step,
                 processes=processes, chunk_size=options.chunk_size, seed=options.seed)  # fmt: skip


def teacher_of(args: argparse.Namespace, model: ElasticModel) -> ElasticModel:
    """What encodes the passages that the queries are aligned with; from now on the model's teacher.

    Raises InputError where it is not the one that the model was made from.
    """
    if model.config.passages.encoder == "teacher":
        return passage_encoder(model, args.teacher)
    name = args.teacher or args.model
    teacher = load_model(name)
    model.config.teacher = teacher.config.teacher if args.teacher else TeacherReference(str(name))
    return teacher


def retriever(
    args: argparse.Namespace, options: LoopOptions, model: ElasticModel, exclusion: Exclusion, processes: Processes
) -> Retrieve:
    """The supervised objective over the split's pairs, with BM25 negatives for the queries that training will see."""
    pairs, negatives = with_negatives(pairs_of_run(args, options, exclusion), args.negatives)
    passages = TokenizedTexts.of(model, pairs.passages, "passage", args.passage_tokens or 128)
    queries = TokenizedTexts.of(model, pairs.queries, "query", args.query_tokens)
    say(f"retriever: {len(queries)} queries, {len(passages)} passages among their positives and negatives")
    return Retrieve(model, queries, passages, pairs.positives, negatives,
                  temperature=args.temperature or contrastive_temperature(model), negatives_per_query=args.negatives,
                  processes=processes, chunk_size=options.chunk_size, seed=options.seed)  # fmt: skip


def pairs_of_run(args: argparse.Namespace, options: LoopOptions, exclusion: Exclusion) -> TrainingPairs:
    """As many of the split's pairs as the steps take, drawn at random."""
    wanted = options.max_steps * options.batch_size + options.dev_examples
    return load_pairs(args.data, args.split, exclusion).sample(wanted, options.seed)


def reranker(
    args: argparse.Namespace, options: LoopOptions, model: ElasticModel, exclusion: Exclusion, processes: Processes
) -> Rerank:
    """The reranking objective over the split's pairs; the model gets a fresh head unless it ranks already."""
    pairs = pairs_of_run(args, options, exclusion)
    pairs, negatives = with_negatives(pairs, args.negatives, run=args.run, judged=True)
    if model.config.task != "score":
        model = model.with_head("score", seed=options.seed)
    teacher = fine_tuned_teacher(args, model, processes)
    queries, passages, limit = texts_to_join(model, pairs, args.query_tokens, args.passage_tokens)
    say(f"reranker: {len(queries):,} queries, {len(passages):,} passages among their positives and negatives")
    return Rerank(model, queries, passages, pairs.positives, negatives,
                  negatives_per_query=args.negatives, teacher=teacher, max_tokens=limit, processes=processes,
                  chunk_size=options.chunk_size, seed=options.seed)  # fmt: skip


def classify(
    args: argparse.Namespace, options: LoopOptions, model: ElasticModel, exclusion: Exclusion, processes: Processes
) -> Classify:
    """The objective over labelled sentences; the model gets a fresh head unless it has one for these labels."""
    known = model.config.labels if model.config.task == "classify" else None
    data, targets = load_examples(args.data, args.split, known, exclusion)
    texts = TokenizedTexts.of_pairs(model, data.pairs)
    if known is None:
        model = model.with_head("classify", data.labels, seed=options.seed)
        if len(data.labels) == 1:
            model.head.bias.data.fill_(float(targets.mean()))
    say(f"classify: {len(texts):,} examples, labels {', '.join(data.labels)}")
    teacher = fine_tuned_teacher(args, model, processes)
    return Classify(model, texts, targets, teacher=teacher, processes=processes, chunk_size=options.chunk_size)


def fine_tuned_teacher(args: argparse.Namespace, model: ElasticModel, processes: Processes) -> ElasticModel | None:
    """What ``--teacher`` names; its task, labels, width and vocabulary must be the model's."""
    if not args.teacher:
        return None
    teacher = ElasticModel.from_pretrained(args.teacher).to(processes.device)
    ours, theirs = model.config, teacher.config
    if theirs.task != ours.task:
        raise InputError(f"--teacher {args.teacher}: its task is {theirs.task!r}, not {ours.task!r}")
    if theirs.labels != ours.labels:
        known = ", ".join(theirs.labels) or "none"
        raise InputError(f"--teacher knows the labels {known}, the data has {', '.join(ours.labels or ())}")
    if theirs.hidden_size != ours.hidden_size or teacher.tokenizer.get_vocab() != model.tokenizer.get_vocab():
        raise InputError(f"--teacher {args.teacher}: has another width or vocabulary than the model")
    return teacher


def print_report(output: str, report: Mapping[str, Any]) -> None:
    """The dev loss of every level before and after, for people and as the last line for programs."""
    before, after = report["dev_loss_before"], report["dev_loss_after"]
    command.print_table([{"level": level, "dev loss before": before[level], "after": after[level]} for level in before])
    keys = ("steps", "minutes", "dev_loss_before", "dev_loss_after")
    command.print_result({"output": str(output)} | {key: report[key] for key in keys})
