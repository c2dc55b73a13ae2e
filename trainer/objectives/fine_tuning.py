"""Base class of objectives over a head's outputs, optionally with a fine-tuned teacher to match."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from elasticlm.model.elastic_model import ElasticModel
from elasticlm.model.structure import Level
from elasticlm.trainer.objectives.base import Objective
from elasticlm.trainer.processes import Processes

STATE_WEIGHT = 3.0  # of the hidden states' match, next to labels and the outputs' match


@dataclass(frozen=True)
class TeacherOutputs:
    """A fine-tuned teacher's outputs [texts, labels] and hidden states [texts, tokens, dim] of a batch."""

    outputs: Tensor
    hidden: Tensor


class FineTuning(Objective):
    """A loss over the head's outputs. With a fine-tuned teacher, every level is also trained to match the teacher.

    Pruning removes much of the attention between the two texts of a pair, and labels alone restore it slowly. The
    teacher's hidden states provide a training signal for every token.

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
    def _teach(self, inputs: Mapping[str, Tensor]) -> TeacherOutputs | None:
        if self.teacher is None:
            return None
        return TeacherOutputs(*self._outputs(self.teacher, inputs, self.teacher.structures.largest))

    def _outputs(self, model: ElasticModel, inputs: Mapping[str, Tensor], level: Level) -> tuple[Tensor, Tensor]:
        """The head's outputs [texts, labels] and the hidden states [texts, tokens, dim] of a level."""
        with self.processes.encoding(inputs["input_ids"].shape[1]):
            hidden = model.hidden(**inputs, level=level)
            return model.at(level).finish(hidden, inputs["attention_mask"]).float(), hidden.float()


def state_losses(hidden: Tensor, teacher: Tensor, attention_mask: Tensor) -> Tensor:
    """1 - cosine of each token's hidden state with the teacher's, the mean over a text's tokens.

    Args:
        hidden, teacher: FloatTensor [texts, tokens, dim]; attention_mask: LongTensor [texts, tokens].

    Returns:
        FloatTensor [texts].
    """
    apart = 1 - F.cosine_similarity(hidden, teacher, dim=-1)
    return (apart * attention_mask).sum(1) / attention_mask.sum(1)
