"""What a step of training minimises: alignment, supervised retrieval, reranking, classification, relations.

An objective turns rows of its training texts into a batch (with the teacher's targets, computed once and without
gradients), and gives every example's loss at a level. The loop (elasticlm.trainer.loop) does the rest, the same for all.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from elasticlm.model.elastic_model import ElasticModel
from elasticlm.model.structure import Level
from elasticlm.trainer.processes import Processes
from elasticlm.trainer.representations import Representations
from elasticlm.trainer.training_texts import TokenizedTexts, joined

ALIGN_TEMPERATURE = 0.02
COSINE_WEIGHT = 3.0
STATE_WEIGHT = 3.0  # of what a fine-tuned teacher's hidden states count beside labels and its outputs
BEST_PASSAGES = 8  # of the teacher, for each query of a step
RANKS = 10  # of dev RR@10
CONTRASTIVE_TEMPERATURE = 0.05  # of vectors of length 1; else 1


class Objective(ABC):
    """A loss over the levels of ``model``, example by example.

    Attributes:
        model: the student; all its levels are trained.
        lengths: IntArray [examples], the tokens of each example, for batches of like lengths.
        chunk_size: examples whose activations are held at once.
        extra: modules that are trained and kept in checkpoints beside the student, but are no part of the artifact.
    """

    def __init__(self, model: ElasticModel, lengths: np.ndarray, processes: Processes, chunk_size: int) -> None:
        self.model, self.lengths, self.processes, self.chunk_size = model, lengths, processes, chunk_size
        self.extra: nn.Module = nn.ModuleDict()

    @abstractmethod
    def batches(self, rows: np.ndarray, step: int) -> Iterable[Any]:
        """Split the examples of a step into batches whose losses do not depend on each other; this process's share.

        A batch holds the inputs of its examples and all that the levels share: the teacher's targets, passages.
        """

    @abstractmethod
    def losses(self, batch: Any, level: Level) -> Tensor:
        """Return each example's loss at a level, FloatTensor [examples], with gradients where enabled."""

    def measure(self, batch: Any, level: Level) -> tuple[Tensor, Tensor]:
        """Return each example's loss and, where the objective ranks passages, its RR@10 (else NaN), [examples] both."""
        losses = self.losses(batch, level)
        return losses, torch.full_like(losses, float("nan"))

    def backward(self, batch: Any, level: Level, weight: float) -> Tensor:
        """Add the gradient of ``weight`` times the summed losses at a level; return the sum."""
        total = self.losses(batch, level).sum()
        (weight * total).backward()
        return total.detach()

    def finish(self, batch: Any) -> None:  # noqa: B027  most objectives share nothing that is trained
        """Add the gradient that the levels left in what they share, once a step."""

    def _chunks(self, rows: np.ndarray) -> list[np.ndarray]:
        """This process's share of the rows, as many at once as activations are held of."""
        mine = self.processes.mine(rows)
        return [mine[i : i + self.chunk_size] for i in range(0, len(mine), self.chunk_size)]

    def _inputs(self, texts: TokenizedTexts, rows: np.ndarray) -> dict[str, Tensor]:
        return {name: tensor.to(self.processes.device) for name, tensor in texts.inputs(rows).items()}

    def _vectors(self, model: ElasticModel, inputs: Mapping[str, Tensor], level: Level) -> Tensor:
        with self.processes.encoding(inputs["input_ids"].shape[1]):
            return model(**inputs, level=level).float()


# --- align -----------------------------------------------------------------------------------------------------------


class Targets(Protocol):
    """Vectors that were computed before, by the rows of their texts (elasticlm.trainer.stored_vectors.StoredVectors, or a tensor)."""

    def __getitem__(self, rows: np.ndarray) -> Tensor: ...


@dataclass(frozen=True)
class AlignBatch:
    """Queries and where the teacher puts them: its vectors [queries, dim], over passages [passages, dim]."""

    inputs: Mapping[str, Tensor]
    teacher: Tensor
    passages: Tensor


class Align(Objective):
    """Pull queries at every level to where the teacher puts them, over passages of an existing index. No labels.

    Args:
        queries: training queries.
        targets: the teacher's vectors of the queries, FloatTensor [rows, dim] by rows; it encoded the passages too.
        passages: FloatTensor [passages, dim], vectors of the index.
        passages_per_step: how many of them a step compares with: for each query the 8 that the teacher ranks first
            (where ranks are decided), and others drawn anew each step.
    """

    def __init__(
        self,
        model: ElasticModel,
        queries: TokenizedTexts,
        targets: Targets,
        passages: Tensor,
        *,
        temperature: float,
        passages_per_step: int,
        processes: Processes,
        chunk_size: int,
        seed: int,
    ) -> None:
        super().__init__(model, queries.lengths, processes, chunk_size)
        self.queries, self.targets, self.passages = queries, targets, passages.to(processes.device)
        self.temperature, self.passages_per_step, self._seed = temperature, passages_per_step, seed

    def batches(self, rows: np.ndarray, step: int) -> Iterator[AlignBatch]:
        device = self.processes.device
        passages = self._passages(self.targets[rows].to(device), step)
        for chunk in self._chunks(rows):
            yield AlignBatch(self._inputs(self.queries, chunk), self.targets[chunk].to(device), passages)

    def _passages(self, teacher: Tensor, step: int) -> Tensor:
        """The step's passages: those that the teacher ranks first for its queries, filled up at random."""
        if len(self.passages) <= self.passages_per_step:
            return self.passages
        best = (teacher @ self.passages.T).topk(BEST_PASSAGES).indices.unique().cpu().numpy()
        drawn = np.random.default_rng([self._seed, 1, step]).permutation(len(self.passages))
        others = drawn[~np.isin(drawn, best)][: max(0, self.passages_per_step - len(best))]
        return self.passages[torch.from_numpy(np.concatenate([best, others])).to(self.passages.device)]

    def losses(self, batch: AlignBatch, level: Level) -> Tensor:
        student = self._vectors(self.model, batch.inputs, level)
        return align_losses(student, batch.teacher, batch.passages, self.temperature)

    def measure(self, batch: AlignBatch, level: Level) -> tuple[Tensor, Tensor]:
        """RR@10 is that of the passage that the teacher ranks first, among those of a step."""
        student = self._vectors(self.model, batch.inputs, level)
        losses = align_losses(student, batch.teacher, batch.passages, self.temperature)
        first = (batch.teacher @ batch.passages.T).argmax(-1)
        return losses, reciprocal_ranks(student @ batch.passages.T, first)


def align_losses(student: Tensor, teacher: Tensor, passages: Tensor, temperature: float) -> Tensor:
    """KL(teacher's distribution over passages || student's) + 3 (1 - cosine), per query.

    Args:
        student, teacher: FloatTensor [queries, dim].
        passages: FloatTensor [passages, dim].

    Returns:
        FloatTensor [queries].
    """
    wanted = F.log_softmax(teacher @ passages.T / temperature, dim=-1)
    found = F.log_softmax(student @ passages.T / temperature, dim=-1)
    divergence = F.kl_div(found, wanted, reduction="none", log_target=True).sum(-1)
    return divergence + COSINE_WEIGHT * (1 - F.cosine_similarity(student, teacher, dim=-1))


# --- retriever ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RetrieveBatch:
    """Queries, the passages of the whole batch, and which passage each query is after.

    query_rows: this process's queries; passages: vectors [passages, dim] with the way back;
    labels: LongTensor [queries], columns of passages; excluded: BoolTensor [queries, passages], further positives.
    """

    query_rows: np.ndarray
    passages: Representations
    labels: Tensor
    excluded: Tensor


class Retrieve(Objective):
    """Supervised retrieval: in-batch and BM25 negatives; passages by the largest level, queries by every level.

    Passages are encoded once a step; every level's gradient gathers in their vectors, and one backward follows.

    Args:
        queries, passages: training texts; ``positives[i]`` are the rows of ``passages`` relevant to query i,
            the first of them the one to find.
        negatives: IntArray [queries, candidates], rows of ``passages`` that are hard negatives of query i.
        negatives_per_query: how many of them a step takes, drawn anew each step.
    """

    def __init__(
        self,
        model: ElasticModel,
        queries: TokenizedTexts,
        passages: TokenizedTexts,
        positives: Sequence[Sequence[int]],
        negatives: np.ndarray,
        *,
        temperature: float,
        negatives_per_query: int,
        processes: Processes,
        chunk_size: int,
        seed: int,
    ) -> None:
        super().__init__(model, queries.lengths, processes, chunk_size)
        self.queries, self.passages, self.positives, self.negatives = queries, passages, positives, negatives
        self.temperature, self.negatives_per_query, self._seed = temperature, negatives_per_query, seed

    def batches(self, rows: np.ndarray, step: int) -> list[RetrieveBatch]:
        """One batch: every query's loss depends on all passages."""
        random = np.random.default_rng([self._seed, 2, step])
        negatives = random.permuted(self.negatives[rows], axis=1)[:, : self.negatives_per_query]
        passage_rows, labels, excluded = in_batch([self.positives[row] for row in rows], negatives.ravel().tolist())
        encode = self._encoder(self.passages, self.model.structures.largest)
        passages = Representations(encode, passage_rows, self.chunk_size, self.processes)
        mine = self.processes.mine(np.arange(len(rows)))
        device = self.processes.device
        return [RetrieveBatch(rows[mine], passages, labels[mine].to(device), excluded[mine].to(device))]

    def losses(self, batch: RetrieveBatch, level: Level) -> Tensor:
        encode = self._encoder(self.queries, level)
        return self._losses(encode(batch.query_rows), batch)

    def measure(self, batch: RetrieveBatch, level: Level) -> tuple[Tensor, Tensor]:
        """RR@10 is that of the query's passage, among those of the batch."""
        queries = self._encoder(self.queries, level)(batch.query_rows)
        scores = (queries @ batch.passages.vectors.T).masked_fill(batch.excluded, float("-inf"))
        return self._losses(queries, batch), reciprocal_ranks(scores, batch.labels)

    def backward(self, batch: RetrieveBatch, level: Level, weight: float) -> Tensor:
        queries = Representations(self._encoder(self.queries, level), batch.query_rows, self.chunk_size)
        total = self._losses(queries.vectors, batch).sum()
        (weight * total).backward()
        queries.backward()
        return total.detach()

    def finish(self, batch: RetrieveBatch) -> None:
        batch.passages.backward()

    def _losses(self, queries: Tensor, batch: RetrieveBatch) -> Tensor:
        return contrastive_losses(queries, batch.passages.vectors, batch.labels, batch.excluded, self.temperature)

    def _encoder(self, texts: TokenizedTexts, level: Level):
        return lambda rows: self._vectors(self.model, self._inputs(texts, rows), level)


def contrastive_losses(
    queries: Tensor, passages: Tensor, labels: Tensor, excluded: Tensor, temperature: float
) -> Tensor:
    """Negative log-likelihood of each query's passage among all, by dot product over temperature.

    Args:
        queries: FloatTensor [queries, dim]; passages: FloatTensor [passages, dim].
        labels: LongTensor [queries], the column of the passage to find.
        excluded: BoolTensor [queries, passages], passages that are left out (further positives of the query).

    Returns:
        FloatTensor [queries].
    """
    scores = (queries @ passages.T / temperature).masked_fill(excluded, float("-inf"))
    return F.cross_entropy(scores, labels, reduction="none")


def reciprocal_ranks(scores: Tensor, labels: Tensor) -> Tensor:
    """1 / rank of each row's label by score, 0 beyond rank 10.

    Args:
        scores: FloatTensor [queries, passages].
        labels: LongTensor [queries], columns of ``scores``.

    Returns:
        FloatTensor [queries].
    """
    ranks = 1 + (scores > scores.gather(1, labels[:, None])).sum(-1)
    return torch.where(ranks <= RANKS, 1 / ranks, 0.0)


def in_batch(positives: Sequence[Sequence[int]], negatives: Iterable[int] = ()) -> tuple[np.ndarray, Tensor, Tensor]:
    """Return the passages of a batch, each once: their rows, and ``labels`` and ``excluded`` of contrastive_losses().

    Args:
        positives: rows relevant to each query; the first is the one to find.
        negatives: further rows.
    """
    rows = np.unique([*(first for first, *_ in positives), *negatives])
    labels = np.searchsorted(rows, [first for first, *_ in positives])
    excluded = np.stack([np.isin(rows, others) for _, *others in positives])
    return rows, torch.from_numpy(labels), torch.from_numpy(excluded)


def contrastive_temperature(model: ElasticModel) -> float:
    """The temperature of in-batch losses: .05 where vectors have length 1, else 1."""
    return CONTRASTIVE_TEMPERATURE if model.config.normalize else 1.0


# --- with a teacher that was fine-tuned ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Taught:
    """A fine-tuned teacher's outputs [texts, labels] and hidden states [texts, tokens, dim] of a batch."""

    outputs: Tensor
    hidden: Tensor


class FineTuning(Objective):
    """A loss over the head's outputs; where a teacher was fine-tuned before, every level is also to do as it does.

    A pruned level has lost much of how one text attends to another, and a label or two a text bring it back slowly. The
    teacher's hidden states say it for every token.

    Args:
        teacher: of the same task and vocabulary; None: labels alone.
    """

    def __init__(
        self,
        model: ElasticModel,
        lengths: np.ndarray,
        *,
        teacher: ElasticModel | None,
        processes: Processes,
        chunk_size: int,
    ) -> None:
        super().__init__(model, lengths, processes, chunk_size)
        self.teacher = teacher

    @torch.no_grad()
    def _teach(self, inputs: Mapping[str, Tensor]) -> Taught | None:
        if self.teacher is None:
            return None
        return Taught(*self._outputs(self.teacher, inputs, self.teacher.structures.largest))

    def _outputs(self, model: ElasticModel, inputs: Mapping[str, Tensor], level: Level) -> tuple[Tensor, Tensor]:
        """The head's outputs [texts, labels] and the hidden states [texts, tokens, dim] of a level."""
        with self.processes.encoding(inputs["input_ids"].shape[1]):
            hidden = model.encoder(**inputs, structure=model.structures[level])
            return model.finish(hidden, inputs["attention_mask"]).float(), hidden.float()


def state_losses(hidden: Tensor, teacher: Tensor, attention_mask: Tensor) -> Tensor:
    """1 - cosine of each token's hidden state with the teacher's, the mean over a text's tokens.

    Args:
        hidden, teacher: FloatTensor [texts, tokens, dim]; attention_mask: LongTensor [texts, tokens].

    Returns:
        FloatTensor [texts].
    """
    apart = 1 - F.cosine_similarity(hidden, teacher, dim=-1)
    return (apart * attention_mask).sum(1) / attention_mask.sum(1)


# --- reranker ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RerankBatch:
    """Pairs of each query with its list of passages, the relevant one first; what the teacher makes of the pairs."""

    inputs: Mapping[str, Tensor]
    queries: int
    teacher: Taught | None


class Rerank(FineTuning):
    """Localized contrastive estimation (Gao et al. 2021): a query's passage against those that a retriever ranks high.

    Args:
        queries, passages: training texts, tokenised alone; ``positives[i]`` are the rows of ``passages`` relevant to
            query i, the first of them the one to find.
        negatives: IntArray [queries, candidates], rows of ``passages`` that are hard negatives of query i.
        negatives_per_query: how many of them a step takes, drawn anew each step.
        teacher: a reranker whose scores over the list and hidden states are matched too; None: labels alone.
    """

    def __init__(
        self,
        model: ElasticModel,
        queries: TokenizedTexts,
        passages: TokenizedTexts,
        positives: Sequence[Sequence[int]],
        negatives: np.ndarray,
        *,
        negatives_per_query: int,
        teacher: ElasticModel | None,
        max_tokens: int,
        processes: Processes,
        chunk_size: int,
        seed: int,
    ) -> None:
        first = np.array([found[0] for found in positives])
        lengths = queries.lengths + passages.lengths[first]
        super().__init__(model, lengths, teacher=teacher, processes=processes, chunk_size=chunk_size)
        self.queries, self.passages, self.first, self.negatives = queries, passages, first, negatives
        self.negatives_per_query, self.max_tokens = negatives_per_query, max_tokens
        self._seed = seed

    def batches(self, rows: np.ndarray, step: int) -> Iterator[RerankBatch]:
        random = np.random.default_rng([self._seed, 2, step])
        drawn = random.permuted(self.negatives[rows], axis=1)[:, : self.negatives_per_query]
        lists = dict(zip(rows.tolist(), np.column_stack([self.first[rows], drawn]), strict=True))
        for chunk in self._chunks(rows):
            passages = np.stack([lists[row] for row in chunk.tolist()])
            pairs = joined(self.model.encoder.family, self.queries, self.passages, chunk.repeat(passages.shape[1]), passages.ravel(),
                           self.max_tokens)  # fmt: skip
            inputs = {name: tensor.to(self.processes.device) for name, tensor in pairs.items()}
            yield RerankBatch(inputs, len(chunk), self._teach(inputs))

    def losses(self, batch: RerankBatch, level: Level) -> Tensor:
        return self.measure(batch, level)[0]

    def measure(self, batch: RerankBatch, level: Level) -> tuple[Tensor, Tensor]:
        """RR@10 is that of the relevant passage in its list."""
        scores, hidden = self._outputs(self.model, batch.inputs, level)
        scores = scores.view(batch.queries, -1)
        first = torch.zeros(len(scores), dtype=torch.long, device=scores.device)
        if batch.teacher is None:
            losses = rerank_losses(scores)
        else:
            losses = rerank_losses(scores, batch.teacher.outputs.view(batch.queries, -1))
            apart = state_losses(hidden, batch.teacher.hidden, batch.inputs["attention_mask"])
            losses = losses + STATE_WEIGHT * apart.view(batch.queries, -1).mean(1)
        return losses, reciprocal_ranks(scores.detach(), first)


def rerank_losses(scores: Tensor, teacher: Tensor | None = None) -> Tensor:
    """Negative log-likelihood of each list's first passage; with a teacher the mean of that and KL(teacher || student).

    Args:
        scores, teacher: FloatTensor [queries, list].

    Returns:
        FloatTensor [queries].
    """
    first = torch.zeros(len(scores), dtype=torch.long, device=scores.device)
    return classify_losses(scores, first, teacher)


# --- classify --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ClassifyBatch:
    """Sentences or pairs, their labels [examples], and what the teacher makes of them."""

    inputs: Mapping[str, Tensor]
    targets: Tensor
    teacher: Taught | None


class Classify(FineTuning):
    """Classification, or regression where the model has a single output; every level by its own pass.

    Args:
        targets: LongTensor [examples] of classes, or FloatTensor [examples] of values.
        teacher: a classifier whose outputs and hidden states are matched too; None: labels alone.
    """

    def __init__(
        self,
        model: ElasticModel,
        texts: TokenizedTexts,
        targets: Tensor,
        *,
        teacher: ElasticModel | None,
        processes: Processes,
        chunk_size: int,
    ) -> None:
        super().__init__(model, texts.lengths, teacher=teacher, processes=processes, chunk_size=chunk_size)
        self.texts, self.targets = texts, targets

    def batches(self, rows: np.ndarray, step: int) -> Iterator[ClassifyBatch]:
        for chunk in self._chunks(rows):
            inputs = self._inputs(self.texts, chunk)
            yield ClassifyBatch(inputs, self.targets[chunk].to(self.processes.device), self._teach(inputs))

    def losses(self, batch: ClassifyBatch, level: Level) -> Tensor:
        outputs, hidden = self._outputs(self.model, batch.inputs, level)
        if batch.teacher is None:
            return classify_losses(outputs, batch.targets)
        apart = state_losses(hidden, batch.teacher.hidden, batch.inputs["attention_mask"])
        return classify_losses(outputs, batch.targets, batch.teacher.outputs) + STATE_WEIGHT * apart


def classify_losses(outputs: Tensor, targets: Tensor, teacher: Tensor | None = None) -> Tensor:
    """Cross entropy, or the squared error of a single output; with a teacher the mean of that and its match.

    Args:
        outputs: FloatTensor [examples, labels], logits or a value.
        targets: LongTensor [examples], or FloatTensor [examples] of values.
        teacher: FloatTensor [examples, labels], matched by KL(teacher || student), or by squared error.

    Returns:
        FloatTensor [examples].
    """
    if outputs.shape[-1] == 1:
        losses = (outputs.squeeze(-1) - targets) ** 2
        return losses if teacher is None else (losses + ((outputs - teacher) ** 2).squeeze(-1)) / 2
    losses = F.cross_entropy(outputs, targets, reduction="none")
    if teacher is None:
        return losses
    wanted, found = teacher.log_softmax(-1), outputs.log_softmax(-1)
    return (losses + F.kl_div(found, wanted, reduction="none", log_target=True).sum(-1)) / 2


# --- relations -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RelationBatch:
    """Texts and the teacher's query, key and value states of its last layer, [texts, tokens, dim] each."""

    inputs: Mapping[str, Tensor]
    teacher: tuple[Tensor, Tensor, Tensor]


class Relations(Objective):
    """Keep the self-attention relations of the teacher's last layer (MiniLMv2), at every level.

    On the student's last hidden state stands one additional full-width attention block, initialised from the teacher's
    last queries, keys and values. It is trained and kept in checkpoints, and dropped from the artifact.

    Args:
        teacher: a model whose largest level keeps every head of the last layer.
        texts: training texts.
        relation_heads: R, into which the merged heads are split anew; divides the hidden size.
        scale: "sqrt" divides by sqrt(dim / R) as MiniLMv2, "plain" by dim / R as ElasticLM prints it.
    """

    def __init__(
        self,
        model: ElasticModel,
        teacher: ElasticModel,
        texts: TokenizedTexts,
        *,
        relation_heads: int,
        scale: str,
        processes: Processes,
        chunk_size: int,
    ) -> None:
        super().__init__(model, texts.lengths, processes, chunk_size)
        self.teacher, self.texts, self.relation_heads, self.scale = teacher, texts, relation_heads, scale
        last = teacher.encoder.layers[-1].attention
        self.extra = nn.ModuleDict({
            name: _copy_of(getattr(last, name)) for name in ("query", "key", "value")
        }).to(processes.device)  # fmt: skip

    def batches(self, rows: np.ndarray, step: int) -> Iterator[RelationBatch]:
        for chunk in self._chunks(rows):
            inputs = self._inputs(self.texts, chunk)
            yield RelationBatch(inputs, self._relations(inputs))

    @torch.no_grad()
    def _relations(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        structure = self.teacher.structures[self.teacher.structures.largest]
        last = self.teacher.encoder.layers[-1].attention
        with self.processes.encoding(inputs["input_ids"].shape[1]):
            hidden = self.teacher.encoder(**inputs, structure=structure, layers=structure.layers - 1)
            return last.query(hidden).float(), last.key(hidden).float(), last.value(hidden).float()

    def losses(self, batch: RelationBatch, level: Level) -> Tensor:
        mask = batch.inputs["attention_mask"]
        with self.processes.encoding(mask.shape[1]):
            hidden = self.model.encoder(**batch.inputs, structure=self.model.structures[level])
            student = tuple(self.extra[name](hidden).float() for name in ("query", "key", "value"))
        return sum(relation_losses(theirs, ours, mask, self.relation_heads, self.scale)
                   for theirs, ours in zip(batch.teacher, student, strict=True))  # fmt: skip


def relation_losses(teacher: Tensor, student: Tensor, attention_mask: Tensor, heads: int, scale: str) -> Tensor:
    """KL(teacher || student) of one self-attention relation, the mean over relation heads and the text's tokens.

    Reln(X) = softmax(X X^T / sqrt(d_R)) for each of ``heads`` relation heads of width d_R; columns of padding are
    masked before the softmax, rows of padding are left out (MiniLMv2, section 3.1; ElasticLM, equation 6).

    Args:
        teacher, student: FloatTensor [texts, tokens, dim]; the two dims may differ.
        attention_mask: LongTensor [texts, tokens].

    Returns:
        FloatTensor [texts].
    """
    wanted = _log_relations(teacher, attention_mask, heads, scale)
    found = _log_relations(student, attention_mask, heads, scale)
    columns = attention_mask[:, None, None, :].bool()
    terms = (wanted.exp() * (wanted - found)).masked_fill(~columns, 0.0)  # [texts, heads, tokens, tokens]
    rows = attention_mask.to(terms.dtype)
    return (terms.sum(-1).mean(1) * rows).sum(1) / rows.sum(1)


def _log_relations(states: Tensor, attention_mask: Tensor, heads: int, scale: str) -> Tensor:
    """Log of the relations, FloatTensor [texts, heads, tokens, tokens]; padding columns are as good as -inf."""
    x = states.unflatten(-1, (heads, -1)).transpose(1, 2)
    width = x.shape[-1]
    scores = x @ x.mT / (width**0.5 if scale == "sqrt" else width)
    return scores.masked_fill(~attention_mask[:, None, None, :].bool(), torch.finfo(scores.dtype).min).log_softmax(-1)


def _copy_of(linear: nn.Linear) -> nn.Linear:
    copy = nn.Linear(linear.in_features, linear.out_features)
    copy.load_state_dict(linear.state_dict())
    return copy
