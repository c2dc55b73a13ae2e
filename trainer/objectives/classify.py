"""classify: labelled sentences or pairs, classes or values."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from elasticlm.model.elastic_model import ElasticModel
from elasticlm.model.structure import Level
from elasticlm.trainer.objectives.fine_tuning import STATE_WEIGHT, FineTuning, TeacherOutputs, state_losses
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

    def losses(self, batch: ClassifyBatch, level: Level) -> Tensor:
        outputs, hidden = self._outputs(self.model, batch.inputs, level)
        if batch.teacher is None:
            return classify_losses(outputs, batch.targets)
        apart = state_losses(hidden, batch.teacher.hidden, batch.inputs["attention_mask"])
        return classify_losses(outputs, batch.targets, batch.teacher.outputs) + STATE_WEIGHT * apart


def classify_losses(outputs: Tensor, targets: Tensor | None, teacher: Tensor | None = None) -> Tensor:
    """Cross entropy, or the squared error of a single output; with a teacher the mean of that and its match.

    Args:
        outputs: FloatTensor [examples, labels], logits or a value.
        targets: LongTensor [examples], or FloatTensor [examples] of values; None: the teacher's match alone.
        teacher: FloatTensor [examples, labels], matched by KL(teacher || student), or by squared error.

    Returns:
        FloatTensor [examples].
    """
    terms = []
    single = outputs.shape[-1] == 1
    if targets is not None:
        terms.append((outputs.squeeze(-1) - targets) ** 2 if single
                     else F.cross_entropy(outputs, targets, reduction="none"))  # fmt: skip
    if teacher is not None:
        terms.append(((outputs - teacher) ** 2).squeeze(-1) if single else
                     F.kl_div(outputs.log_softmax(-1), teacher.log_softmax(-1), reduction="none", log_target=True)
                     .sum(-1))  # fmt: skip
    return torch.stack(terms).mean(0)
