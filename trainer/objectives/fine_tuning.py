"""Base class of objectives over a head's outputs, optionally with a fine-tuned teacher to match."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from elasticlm.model.elastic_model import ElasticModel
from elasticlm.model.heads import score
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
        self.level_heads: Mapping[Level, nn.Module] = {}  # of levels that have a head of their own, not the model's

    @abstractmethod
    def targets_of(self, batch: Any) -> Tensor | None:
        """Return what is right among the choices of each example, as match_losses() takes it; None without labels."""

    def choices(self, outputs: Tensor, batch: Any) -> Tensor:
        """Turn a head's outputs [texts, labels] into each example's choices [examples, choices].

        These are a text's labels, or the scores of a query's whole list.
        """
        return outputs

    def per_example(self, values: Tensor, batch: Any) -> Tensor:
        """Turn a value for each text, FloatTensor [texts], into one for each example."""
        return values

    def task_losses(self, outputs: Tensor, batch: Any, teacher: Tensor | None = None) -> Tensor:
        """Return each example's loss [examples] by the labels and, where given, by the match of the teacher's outputs.

        Args:
            outputs, teacher: FloatTensor [texts, labels].
        """
        theirs = None if teacher is None else self.choices(teacher, batch)
        return match_losses(self.choices(outputs, batch), self.targets_of(batch), theirs)

    def losses(self, batch: Any, level: Level) -> Tensor:
        return self._losses(*self.outputs(self.model, batch.inputs, level), batch)

    def _losses(self, outputs: Tensor, hidden: Tensor, batch: Any) -> Tensor:
        if batch.teacher is None:
            return self.task_losses(outputs, batch)
        apart = state_losses(hidden, batch.teacher.hidden, batch.inputs["attention_mask"])
        return self.task_losses(outputs, batch, batch.teacher.outputs) + STATE_WEIGHT * self.per_example(apart, batch)

    @torch.no_grad()
    def _teach(self, inputs: Mapping[str, Tensor]) -> TeacherOutputs | None:
        if self.teacher is None:
            return None
        return TeacherOutputs(*self.outputs(self.teacher, inputs, self.teacher.structures.largest))

    def outputs(self, model: ElasticModel, inputs: Mapping[str, Tensor], level: Level) -> tuple[Tensor, Tensor]:
        """Return the head's outputs [texts, labels] and the hidden states [texts, tokens, dim] of a level."""
        hidden, mask = self._by_length(lambda part: model.hidden(**part, level=level), inputs), inputs["attention_mask"]
        with self.processes.encoding(hidden.shape[1]):
            part, dropout = model.at(level), model.dropout_at(level)
            head = self.level_heads.get(level) if model is self.model else None
            found = (
                score(part.config, head, hidden, mask, dropout) if head else part.finish(hidden, mask, dropout=dropout)
            )
            return found.float(), hidden


def state_losses(hidden: Tensor, teacher: Tensor, attention_mask: Tensor) -> Tensor:
    """1 - cosine of each token's hidden state with the teacher's, the mean over a text's tokens.

    Args:
        hidden, teacher: FloatTensor [texts, tokens, dim]; attention_mask: LongTensor [texts, tokens].

    Returns:
        FloatTensor [texts].
    """
    apart = 1 - F.cosine_similarity(hidden, teacher, dim=-1)
    return (apart * attention_mask).sum(1) / attention_mask.sum(1)


def match_losses(outputs: Tensor, targets: Tensor | None, teacher: Tensor | None = None) -> Tensor:
    """Cross entropy, or the squared error of a single output; with a teacher the mean of that and its match.

    Args:
        outputs: FloatTensor [examples, choices], logits or a value.
        targets: LongTensor [examples], or FloatTensor [examples] of values; None: the teacher's match alone.
        teacher: FloatTensor [examples, choices], matched by KL(teacher || student), or by squared error.

    Returns:
        FloatTensor [examples].
    """
    terms = []
    single = outputs.shape[-1] == 1
    if targets is not None:
        terms.append((outputs.squeeze(-1) - targets) ** 2 if single
                     else F.cross_entropy(outputs, targets, reduction="none"))  # fmt: skip
    if teacher is not None:
        terms.append(soft_losses(outputs, teacher))
    return torch.stack(terms).mean(0)


def soft_losses(outputs: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """T^2 KL(teacher / T || student / T) (Hinton et al. 2015), or the squared error of a single output.

    Args:
        outputs, teacher: FloatTensor [examples, choices].

    Returns:
        FloatTensor [examples].
    """
    if outputs.shape[-1] == 1:
        return ((outputs - teacher) ** 2).squeeze(-1)
    predicted, target = ((logits / temperature).log_softmax(-1) for logits in (outputs, teacher))
    return temperature**2 * F.kl_div(predicted, target, reduction="none", log_target=True).sum(-1)
