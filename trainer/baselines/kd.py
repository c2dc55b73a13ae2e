"""KD: the logits of a fine-tuned teacher next to the labels (Hinton et al. 2015, "Distilling the Knowledge").

For a reranker the choices are a query's list of passages: the second stage of BM25+LM-Ranker Distil (Gao et al. 2020,
"Understanding BERT Rankers Under Distillation"), whose first stage is ``lm-distil``.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
from torch import Tensor

from elasticlm.model.elastic_model import ElasticModel
from elasticlm.model.structure import Level
from elasticlm.trainer.objectives.base import Objective
from elasticlm.trainer.objectives.fine_tuning import FineTuning, soft_losses

TEMPERATURE = 2.0
SOFT_SHARE = 0.5  # of the loss that is the teacher's, the rest being the labels'


class KnowledgeDistillation(Objective):
    """Match the outputs of a fine-tuned teacher, softened by a temperature, next to the labels.

    Args:
        task: the task's objective, which makes the batches; its model is trained.
        teacher: of the same task; of any width.
    """

    def __init__(self, task: FineTuning, teacher: ElasticModel) -> None:
        super().__init__(task.model, task.lengths, task.processes, task.chunk_size)
        self.task, task.teacher = task, teacher

    def batches(self, rows: np.ndarray, step: int) -> Iterable[Any]:
        return self.task.batches(rows, step)

    def losses(self, batch: Any, level: Level) -> Tensor:
        outputs, _ = self.task.outputs(self.model, batch.inputs, level)
        soft = soft_losses(
            self.task.choices(outputs, batch), self.task.choices(batch.teacher.outputs, batch), TEMPERATURE
        )
        return SOFT_SHARE * soft + (1 - SOFT_SHARE) * self.task.task_losses(outputs, batch)
