"""classify: labelled sentences or pairs, classes or values."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from elasticlm.model.elastic_model import ElasticModel
from elasticlm.trainer.objectives.fine_tuning import FineTuning, TeacherOutputs
from elasticlm.trainer.processes import Processes
from elasticlm.trainer.training_texts import TokenizedTexts


@dataclass(frozen=True)
class ClassifyBatch:
    """Sentences or pairs, their labels [examples] if there are any, and what the teacher makes of them."""

    inputs: Mapping[str, Tensor]
    targets: Tensor | None
    teacher: TeacherOutputs | None


class Classify(FineTuning):
    """Classification, or regression where the model has a single output; every level by its own pass.

    Args:
        targets: LongTensor [examples] of classes, or FloatTensor [examples] of values; None: the teacher alone.
        teacher: a classifier whose outputs and hidden states are matched too; None: labels alone.
    """

    def __init__(
        self,
        model: ElasticModel,
        texts: TokenizedTexts,
        targets: Tensor | None,
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
            targets = None if self.targets is None else self.targets[chunk].to(self.processes.device)
            yield ClassifyBatch(inputs, targets, self._teach(inputs))

    def targets_of(self, batch: ClassifyBatch) -> Tensor | None:
        return batch.targets
