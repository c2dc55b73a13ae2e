"""align: query vectors at every level are trained to match the teacher's, over passages of an existing index.

This objective is not the paper's; it needs no labels.
"""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from elasticlm.model.elastic_model import ElasticModel
from elasticlm.model.structure import Level
from elasticlm.trainer.objectives.base import Objective, reciprocal_ranks
from elasticlm.trainer.processes import Processes
from elasticlm.trainer.training_texts import TokenizedTexts

ALIGN_TEMPERATURE = 0.02
COSINE_WEIGHT = 3.0
BEST_PASSAGES = 8  # of the teacher, for each query of a step


class Targets(Protocol):
    """Precomputed vectors by row: a tensor, or elasticlm.trainer.stored_vectors.StoredVectors."""

    def __getitem__(self, rows: np.ndarray) -> Tensor: ...


@dataclass(frozen=True)
class AlignBatch:
    """Queries and the teacher's vectors [queries, dim], over passages [passages, dim]."""

    inputs: Mapping[str, Tensor]
    teacher: Tensor
    passages: Tensor


class Align(Objective):
    """Train query vectors at every level to match the teacher's, over passages of an existing index. No labels.

    Args:
        queries: training queries.
        targets: the teacher's vectors of the queries, FloatTensor [rows, dim] by rows; it encoded the passages too.
        passages: FloatTensor [passages, dim], vectors of the index.
        passages_per_step: number of passages that a step compares with: for each query the 8 that the teacher ranks
            first (where ranks are decided), as far as there is room, and others drawn anew each step.
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
        """Return the step's passages: those that the teacher ranks first for its queries, filled up at random.

        If there is no room for the best of all queries, each query's first comes before any query's second.
        """
        count = self.passages_per_step
        if len(self.passages) <= count:
            return self.passages
        ranked = (teacher @ self.passages.T).topk(min(BEST_PASSAGES, count)).indices
        by_rank = dict.fromkeys(ranked.T.flatten().tolist())
        best = np.sort(list(itertools.islice(by_rank, count)))
        drawn = np.random.default_rng([self._seed, 1, step]).permutation(len(self.passages))
        others = drawn[~np.isin(drawn, best)][: count - len(best)]
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
    target = F.log_softmax(teacher @ passages.T / temperature, dim=-1)
    predicted = F.log_softmax(student @ passages.T / temperature, dim=-1)
    divergence = F.kl_div(predicted, target, reduction="none", log_target=True).sum(-1)
    return divergence + COSINE_WEIGHT * (1 - F.cosine_similarity(student, teacher, dim=-1))
