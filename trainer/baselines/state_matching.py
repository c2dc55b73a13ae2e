"""What DynaBERT and MoEBERT share: a fine-tuned teacher's outputs and the hidden states of its layers."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from elasticlm.model.elastic_model import ElasticModel
from elasticlm.model.structure import Level
from elasticlm.trainer.baselines.states import states_of
from elasticlm.trainer.objectives.base import Objective
from elasticlm.trainer.objectives.fine_tuning import FineTuning


@dataclass(frozen=True)
class TaughtBatch:
    """A task's batch, and the teacher's outputs [texts, labels] and hidden states, the embeddings first."""

    of_task: Any
    outputs: Tensor
    hidden: tuple[Tensor, ...]


class StateMatching(Objective):
    """Base of what matches a teacher's outputs and hidden states, over the batches of a task.

    Args:
        task: the task's objective; from now on its model is the student.
        model: the student, made of the task's model.
        teacher: a fine-tuned model of the same width and depth.
    """

    def __init__(self, task: FineTuning, model: ElasticModel, teacher: ElasticModel) -> None:
        super().__init__(model, task.lengths, task.processes, task.chunk_size)
        self.task, self.teacher, task.model = task, teacher, model

    def batches(self, rows: np.ndarray, step: int) -> Iterator[TaughtBatch]:
        for batch in self.task.batches(rows, step):
            with torch.no_grad():
                outputs, hidden = self.run(self.teacher, batch.inputs, self.teacher.structures.largest)
            yield TaughtBatch(batch, outputs, hidden)

    def run(self, model: ElasticModel, inputs: Mapping[str, Tensor], level: Level) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the head's outputs [texts, labels] and the hidden states of all layers, the embeddings first."""
        with self.processes.encoding(inputs["input_ids"].shape[1]):
            hidden = states_of(model, inputs, level).hidden
            found = model.finish(hidden[-1], inputs["attention_mask"], dropout=model.dropout_at(level))
            return found.float(), hidden


def token_losses(hidden: Tensor, teacher: Tensor, attention_mask: Tensor) -> Tensor:
    """Mean squared error of hidden states [texts, tokens, dim], the mean over each text's tokens: [texts]."""
    apart = F.mse_loss(hidden.float(), teacher.float(), reduction="none").mean(-1)
    return (apart * attention_mask).sum(1) / attention_mask.sum(1)
