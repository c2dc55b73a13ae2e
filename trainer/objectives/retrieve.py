"""retrieve (the paper's ElasticDenser): in-batch and BM25 negatives, passages by the largest level."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from elasticlm.model.elastic_model import ElasticModel
from elasticlm.model.structure import Level
from elasticlm.trainer.objectives.base import Objective, draw_negatives, reciprocal_ranks
from elasticlm.trainer.processes import Processes
from elasticlm.trainer.representations import Representations
from elasticlm.trainer.training_texts import TokenizedTexts

CONTRASTIVE_TEMPERATURE = 0.05  # of vectors of length 1; else 1


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

    Passages are encoded once per step. The gradients of all levels accumulate in their vectors, followed by a single
    backward pass through the encoder.

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
        negatives = draw_negatives(self.negatives[rows], self.negatives_per_query, self._seed, step)
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
    """Return the temperature of in-batch losses: 0.05 if vectors have length 1, else 1."""
    return CONTRASTIVE_TEMPERATURE if model.config.normalize else 1.0
