"""Rank a teacher's heads and neurons by expressive score, nest the levels in it, write the artifact."""

import argparse
import time
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from elasticlm import command
from elasticlm.command import progress, say
from elasticlm.errors import InputError
from elasticlm.model.configuration import Passages
from elasticlm.model.download import resolve_model
from elasticlm.model.elastic_model import ElasticModel
from elasticlm.model.structure import WHOLE, ElasticStructure, Level, level_name
from elasticlm.model.teacher import load_model
from elasticlm.retrieval.data_specs import has_labels, load_queries
from elasticlm.retrieval.labelled import Sentences
from elasticlm.trainer import mixture
from elasticlm.trainer.inputs import teacher_settings
from elasticlm.trainer.layers import initialise, shaped_student
from elasticlm.trainer.masking import UNMASKED, Masking
from elasticlm.trainer.mixture import Exclusion
from elasticlm.trainer.negatives import OF_RERANKERS, with_negatives
from elasticlm.trainer.objectives.classify import Classify, ClassifyBatch
from elasticlm.trainer.objectives.fine_tuning import FineTuning, match_losses
from elasticlm.trainer.objectives.rerank import Rerank, RerankBatch
from elasticlm.trainer.objectives.retrieve import contrastive_losses, contrastive_temperature, in_batch
from elasticlm.trainer.processes import Processes
from elasticlm.trainer.scores import Scores, expressive_scores
from elasticlm.trainer.stored_vectors import stored_vectors
from elasticlm.trainer.training_pairs import (
    TrainingPairs,
    load_examples,
    load_pairs,
    load_sentence_pairs,
    texts_to_join,
)
from elasticlm.trainer.training_texts import TokenizedTexts


def prune(args: argparse.Namespace, levels: tuple[Level, ...]) -> None:
    """Write the artifact that the options describe, and print what each level keeps."""
    torch.set_num_threads(args.threads or torch.get_num_threads())
    start = time.monotonic()
    teacher = load_model(args.teacher, **teacher_settings(args))
    if tuple(teacher.levels) != (WHOLE,):
        raise InputError(f"--teacher {args.teacher} is an elastic model; prune starts from a whole encoder")
    shaped = bool(args.layers or args.width)
    student = shaped_student(teacher, args.layers, args.width, args.seed) if shaped else teacher
    top = args.top == "teacher" or (args.top is None and WHOLE in levels and len(levels) > 1 and not shaped)
    scores = _scores(args, scored_model(args, student), levels)
    structures, head_order, neuron_order = ElasticStructure.from_scores(*scores, levels, top=top)
    model = student.cut(structures, head_order, neuron_order)
    if args.fresh_weights:
        initialise(model.encoder.layers, model.config.initializer_range, args.seed)
    if model.config.task == "embed":
        fits = model.config.vector_size == teacher.config.vector_size
        model.config.passages = (Passages("teacher", teacher.fingerprint()) if fits
                                 else Passages("largest", model.fingerprint()))  # fmt: skip
    model.save_pretrained(args.output, overwrite=args.overwrite)
    seconds = time.monotonic() - start
    command.print_table(table(model))
    command.print_result({"output": str(args.output), "levels": list(structures.levels), "seconds": round(seconds, 1)})


def scored_model(args: argparse.Namespace, teacher: ElasticModel) -> ElasticModel:
    """Return the model whose units are scored, the teacher or the one of --score-model.

    ElasticLM, section 4.4: ElasticDenser and ElasticRanker keep the structure that comes from BERT. Raises InputError
    where the model has other sizes than the teacher.
    """
    if not args.score_model:
        return teacher
    scored = load_model(args.score_model)
    ours, theirs = ((model.config.family, model.config.hidden_size, model.config.num_hidden_layers,
                     model.config.num_attention_heads, model.config.intermediate_size)
                    for model in (scored, teacher))  # fmt: skip
    if ours != theirs or tuple(scored.levels) != (WHOLE,):
        raise InputError(f"--score-model {args.score_model}: expected a whole model of the teacher's family and sizes "
                         f"(family, hidden size, layers, heads, neurons: {theirs}), not {ours}")  # fmt: skip
    return scored


def table(model: ElasticModel) -> list[dict[str, object]]:
    """One row per level: what it keeps of every layer, its size, and its GFLOPs as the paper counts them."""
    family = model.encoder.family
    rest = sum(p.numel() for name, p in model.named_parameters() if "embeddings" in name)
    return [
        {
            "level": level_name(level),
            "heads per layer": " ".join(map(str, kept.heads)),
            "neurons per layer": " ".join(map(str, kept.neurons)),
            "prunable parameters": family.prunable_parameters(model.config, kept),
            "embedding parameters": rest,
            "GFLOPs": f"{family.paper_gflops(model.config, kept):.3g}",
        }
        for level, kept in model.structures.items()
    ]


def _scores(
    args: argparse.Namespace, teacher: ElasticModel, levels: tuple[Level, ...]
) -> tuple[np.ndarray, np.ndarray]:
    config = teacher.config
    if levels == (WHOLE,):
        say("level 100 alone: nothing to rank, units stay in the teacher's order")
        return (np.ones((config.num_hidden_layers, config.num_attention_heads)),
                np.ones((config.num_hidden_layers, config.intermediate_size)))  # fmt: skip
    if args.score_loss == "random":
        random = np.random.default_rng(args.seed)
        return (random.random((config.num_hidden_layers, config.num_attention_heads)),
                random.random((config.num_hidden_layers, config.intermediate_size)))  # fmt: skip
    fine_tuned = config.task != "embed"
    loss = args.score_loss or ("task" if fine_tuned else "contrastive")
    if fine_tuned != (loss == "task"):
        raise InputError(f"--score-loss {loss}: does not go with a teacher of task {config.task!r}")
    scorers = {"contrastive": contrastive_scores, "mlm": mlm_scores, "task": task_scores}
    scores = scorers[loss](args, teacher).normalized()
    return scores.heads, scores.neurons


def contrastive_scores(args: argparse.Namespace, teacher: ElasticModel) -> Scores:
    """Scores by each query's negative log-likelihood of its passage among its batch's (by the teacher as it is)."""
    processes = Processes()
    pairs = scored_pairs(args.data, args.split, Exclusion(args.exclude)).sample(args.max_examples, args.seed)
    temperature = args.temperature or contrastive_temperature(teacher)
    rows = np.unique([positives[0] for positives in pairs.positives])
    passages = TokenizedTexts.of(teacher, [pairs.passages[row] for row in rows], "passage", args.max_tokens)
    vectors = stored_vectors(teacher, passages, processes, desc="passages of the queries scored").all()
    queries = TokenizedTexts.of(teacher, pairs.queries, "query")

    def losses(examples: np.ndarray) -> Tensor:
        among, labels, excluded = in_batch([pairs.positives[i] for i in examples])
        found = teacher(**queries.inputs(examples), level=WHOLE)
        return contrastive_losses(found, vectors[np.searchsorted(rows, among)], labels, excluded, temperature)

    order = np.random.default_rng(args.seed).permutation(len(queries))
    return expressive_scores(teacher, _batches(order, args.batch_size), losses)


def scored_pairs(specs: Sequence[str], split: str, exclusion: Exclusion) -> TrainingPairs:
    """Return the queries of a split with their passages, or each query with itself.

    The latter where the data has no judgements and no paragraphs that can be cut into a query and a passage, such as a
    file of queries. Raises InputError for data that has neither.
    """
    try:
        return load_pairs(specs, split, exclusion)
    except InputError as reason:
        if any(has_labels(spec, split) for spec in specs):
            raise
        found = (load_queries(spec, split) for spec in specs)
        queries = {text: qid for both in found for qid, text in zip(*both, strict=True) if exclusion.keeps(text)}
        if not queries:
            raise
        say(f"{reason}; units are scored by how well each query finds itself among others")
    ids, texts, rows = list(queries.values()), list(queries), range(len(queries))
    return TrainingPairs(ids, texts, ids, texts, [[row] for row in rows], [[] for _ in rows], list(rows))


def task_scores(args: argparse.Namespace, teacher: ElasticModel) -> Scores:
    """Scores by the fine-tuning loss of a reranker or classifier; for a reranker, the loss of a pair's whole list.

    Where the data has no labels, the teacher's own decisions take their place: the passage that it ranks first, the
    class that it chooses. Of a regression, the output itself is scored.
    """
    processes, exclusion = Processes(), Exclusion(args.exclude)
    labels = all(has_labels(spec, args.split) for spec in args.data)
    decides = None if labels else teacher
    objective: Rerank | Classify
    if teacher.config.task == "score":
        pairs = load_pairs(args.data, args.split, exclusion, labels=labels)
        pairs = pairs.sample(args.max_examples // (1 + OF_RERANKERS), args.seed)
        drawn = OF_RERANKERS + (not labels)
        pairs, negatives = with_negatives(pairs, drawn, judged=True)
        queries, passages = texts_to_join(teacher, pairs, args.max_tokens)
        objective = Rerank(teacher, queries, passages, pairs.positives if labels else None, negatives,
                           negatives_per_query=drawn, teacher=decides, processes=processes, seed=args.seed,
                           chunk_size=max(1, args.batch_size // (1 + OF_RERANKERS)))  # fmt: skip
    else:
        examples, targets = _examples(args, teacher, exclusion, labels=labels)
        objective = Classify(teacher, TokenizedTexts.of_pairs(teacher, examples), targets, teacher=decides,
                             processes=processes, chunk_size=args.batch_size)  # fmt: skip
    teacher.to(processes.device)

    task: FineTuning = objective

    def losses(batch: RerankBatch | ClassifyBatch) -> Tensor:
        outputs = teacher(**batch.inputs, level=WHOLE)
        choices = task.choices(outputs, batch)
        if batch.teacher is None:
            return match_losses(choices, task.targets_of(batch))
        if choices.shape[-1] == 1:
            return choices.squeeze(-1)
        return match_losses(choices, task.choices(batch.teacher.outputs, batch).argmax(-1))

    by_length = np.argsort(objective.lengths, kind="stable")
    count = -(-len(by_length) // objective.chunk_size)
    batches = progress(objective.batches(by_length, 0), total=count, desc="scores", unit="batch")
    sized = ((len(batch.inputs["input_ids"]), batch) for batch in batches)
    return expressive_scores(teacher, sized, losses)


def _examples(
    args: argparse.Namespace, teacher: ElasticModel, exclusion: Exclusion, *, labels: bool
) -> tuple[list[Sentences], Tensor | None]:
    """A classifier's sentences or pairs, drawn at random, and their targets if labels are used."""
    targets = None
    if labels:
        data, targets = load_examples(args.data, args.split, teacher.config.labels, exclusion)
        pairs = data.pairs
    else:
        pairs = load_sentence_pairs(args.data, args.split, exclusion)
    drawn = np.random.default_rng(args.seed).permutation(len(pairs))[: args.max_examples]
    return [pairs[i] for i in drawn], None if targets is None else targets[drawn]


def mlm_scores(args: argparse.Namespace, teacher: ElasticModel) -> Scores:
    """Scores by the mean negative log-likelihood of each text's masked tokens. Raises InputError without that head."""
    name = args.score_model or args.teacher
    try:
        lm_head = teacher.encoder.family.load_lm_head(resolve_model(name))
    except InputError as error:
        if "no masked language model head" not in str(error):
            raise
        raise InputError(f"{name} has no masked language model head, which --score-loss mlm needs: "
                         "use --score-loss contrastive") from None  # fmt: skip
    drawn = mixture.texts(args.data, args.split, args.max_examples, args.seed, Exclusion(args.exclude))
    tokens = TokenizedTexts.of(teacher, drawn, "passage", args.max_tokens)
    masking = Masking(teacher.tokenizer, args.seed)

    def losses(examples: np.ndarray) -> Tensor:
        inputs = tokens.inputs(examples)
        ids, labels = masking(inputs["input_ids"])
        hidden = teacher.hidden(ids, inputs["attention_mask"], level=WHOLE)
        masked = labels != UNMASKED
        terms = F.cross_entropy(lm_head(hidden[masked]), labels[masked], reduction="none")
        text = masked.nonzero()[:, 0]
        sums = torch.zeros(len(examples)).index_add(0, text, terms)
        return sums / masked.sum(1).clamp(min=1)

    by_length = np.argsort(tokens.lengths, kind="stable")
    return expressive_scores(teacher, _batches(by_length, args.batch_size), losses)


def _batches(order: np.ndarray, batch_size: int) -> Iterator[tuple[int, np.ndarray]]:
    batches = np.array_split(order, -(-len(order) // batch_size))
    for examples in progress(batches, desc="scores", unit="batch"):
        yield len(examples), examples
