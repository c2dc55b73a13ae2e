"""BERT+SimTinyBERT: TinyBERT's stages in one (Chen et al. 2021, "Simplified TinyBERT: Knowledge Distillation for
Document Retrieval").

The losses over layers, the soft labels of a fine-tuned teacher and the hard labels are minimised together, where
TinyBERT's task-specific distillation takes two stages and no hard labels.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from elasticlm.model.elastic_model import ElasticModel
from elasticlm.model.structure import Level
from elasticlm.trainer.baselines.states import States, states_of
from elasticlm.trainer.baselines.tinybert import check_heads, layer_losses, projection, teacher_states
from elasticlm.trainer.objectives.base import Objective
from elasticlm.trainer.objectives.fine_tuning import FineTuning, soft_losses


@dataclass(frozen=True)
class SimBatch:
    """A task's batch, the teacher's outputs [texts, labels], and its states at the layers that the student's match."""

    of_task: Any
    outputs: Tensor
    teacher: States


class SimTinyBert(Objective):
    """Match the teacher's states and outputs, next to the labels.

    Args:
        task: the task's objective; its model is trained.
        teacher: a fine-tuned model of the same task, with as many heads; of any width.
    """

    def __init__(self, task: FineTuning, teacher: ElasticModel, *, seed: int) -> None:
        super().__init__(task.model, task.lengths, task.processes, task.chunk_size)
        check_heads(task.model, teacher)
        self.task, self.teacher = task, teacher
        self.extra = projection(task.model, teacher, seed).to(self.processes.device)

    def batches(self, rows: np.ndarray, step: int) -> Iterator[SimBatch]:
        for batch in self.task.batches(rows, step):
            with torch.no_grad(), self.processes.encoding(batch.inputs["input_ids"].shape[1]):
                teacher = teacher_states(self.teacher, batch.inputs, self.model)
                outputs = self.teacher.finish(teacher.hidden[-1], batch.inputs["attention_mask"]).float()
            yield SimBatch(batch, outputs, teacher)

    def losses(self, batch: SimBatch, level: Level) -> Tensor:
        task, mask = batch.of_task, batch.of_task.inputs["attention_mask"]
        with self.processes.encoding(mask.shape[1]):
            student = states_of(self.model, task.inputs, level, attention=True)
            outputs = self.model.finish(student.hidden[-1], mask, dropout=self.model.dropout_at(level)).float()
        states = self.task.per_example(layer_losses(student, batch.teacher, mask, self.extra), task)
        soft = soft_losses(self.task.choices(outputs, task), self.task.choices(batch.outputs, task))
        return states + soft + self.task.task_losses(outputs, task)
