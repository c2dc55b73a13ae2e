"""rerank (the paper's ElasticRanker): localized contrastive estimation over a query's list of passages."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from elasticlm.model.elastic_model import ElasticModel
from elasticlm.model.structure import Level
from elasticlm.trainer.objectives.base import draw_negatives, reciprocal_ranks
from elasticlm.trainer.objectives.fine_tuning import FineTuning, TeacherOutputs
from elasticlm.trainer.processes import Processes
from elasticlm.trainer.training_texts import TokenizedTexts, joined


@dataclass(frozen=True)
class RerankBatch:
    """Pairs of each query with its list of passages (with labels, a relevant one first), and the teacher's outputs."""

    inputs: Mapping[str, Tensor]
    queries: int
    teacher: TeacherOutputs | None


class Rerank(FineTuning):
    """Localized contrastive estimation (Gao et al. 2021): a query's passage against those that a retriever ranks high.

    Args:
        queries, passages: training texts, tokenised by TokenizedTexts.to_join(); ``positives[i]`` are the rows of
            ``passages`` relevant to query i, the first of them the one to find. None: no labels, the teacher alone.
        negatives: IntArray [queries, candidates], rows of ``passages`` that are hard negatives of query i, or that a
            first stage ranks high for it where there are no labels; a row may end with NONE.
        negatives_per_query: how many of them a step takes, drawn anew each step; every row has as many.
        teacher: a reranker whose scores over the list and hidden states are matched too; None: labels alone.
    """

    def __init__(
        self,
        model: ElasticModel,
        queries: TokenizedTexts,
        passages: TokenizedTexts,
        positives: Sequence[Sequence[int]] | None,
        negatives: np.ndarray,
        *,
        negatives_per_query: int,
        teacher: ElasticModel | None,
        processes: Processes,
        chunk_size: int,
        seed: int,
    ) -> None:
        first = None if positives is None else np.array([relevant[0] for relevant in positives])
        lengths = queries.lengths + passages.lengths[negatives[:, 0] if first is None else first]
        super().__init__(model, lengths, teacher=teacher, processes=processes, chunk_size=chunk_size)
        self.queries, self.passages, self.first, self.negatives = queries, passages, first, negatives
        self.negatives_per_query, self._seed = negatives_per_query, seed

    def batches(self, rows: np.ndarray, step: int) -> Iterator[RerankBatch]:
        drawn = draw_negatives(self.negatives[rows], self.negatives_per_query, self._seed, step)
        if self.first is not None:
            drawn = np.column_stack([self.first[rows], drawn])
        lists = dict(zip(rows.tolist(), drawn, strict=True))
        for chunk in self._chunks(rows):
            passages = np.stack([lists[row] for row in chunk.tolist()])
            pairs = joined(self.model, self.queries, self.passages, chunk.repeat(passages.shape[1]), passages.ravel())
            inputs = {name: tensor.to(self.processes.device) for name, tensor in pairs.items()}
            yield RerankBatch(inputs, len(chunk), self._teach(inputs))

    def targets_of(self, batch: RerankBatch) -> Tensor | None:
        device = self.processes.device
        return None if self.first is None else torch.zeros(batch.queries, dtype=torch.long, device=device)

    def choices(self, outputs: Tensor, batch: RerankBatch) -> Tensor:
        return outputs.view(batch.queries, -1)

    def per_example(self, values: Tensor, batch: RerankBatch) -> Tensor:
        return values.view(batch.queries, -1).mean(1)

    def measure(self, batch: RerankBatch, level: Level) -> tuple[Tensor, Tensor]:
        """RR@10 is that of the relevant passage in its list; without labels that of the teacher's best."""
        outputs, hidden = self.outputs(self.model, batch.inputs, level)
        scores = self.choices(outputs, batch)
        if self.first is None and batch.teacher is not None:
            best = self.choices(batch.teacher.outputs, batch).argmax(-1)
        else:
            best = torch.zeros(batch.queries, dtype=torch.long, device=scores.device)
        return self._losses(outputs, hidden, batch), reciprocal_ranks(scores, best)
