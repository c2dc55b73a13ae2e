"""TinyBERT: hidden states and attention, layer by layer (Jiao et al. 2020, "TinyBERT: Distilling BERT for Natural
Language Understanding").

This is its general stage, on plain text; the paper leaves the task-specific one out. Layer m of the student matches the
teacher's layer m N / M.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from elasticlm.errors import InputError
from elasticlm.model.elastic_model import ElasticModel
from elasticlm.model.structure import Level
from elasticlm.trainer.baselines.states import States, states_of
from elasticlm.trainer.layers import initialise, matched_layers
from elasticlm.trainer.objectives.base import Objective
from elasticlm.trainer.processes import Processes
from elasticlm.trainer.training_texts import TokenizedTexts


@dataclass(frozen=True)
class TinyBatch:
    """Texts, and the teacher's states at the layers that the student's match."""

    inputs: Mapping[str, Tensor]
    teacher: States


class TinyBert(Objective):
    """Match the teacher's embeddings, hidden states and attention logits by mean squared errors.

    Args:
        teacher: with as many heads as the student, of any width.
        texts: training texts, alike for both.
    """

    def __init__(
        self,
        model: ElasticModel,
        teacher: ElasticModel,
        texts: TokenizedTexts,
        *,
        processes: Processes,
        chunk_size: int,
        seed: int,
    ) -> None:
        super().__init__(model, texts.lengths, processes, chunk_size)
        self.teacher, self.texts = teacher, texts
        check_heads(model, teacher)
        self.extra = projection(model, teacher, seed).to(processes.device)

    def batches(self, rows: np.ndarray, step: int) -> Iterator[TinyBatch]:
        for chunk in self._chunks(rows):
            inputs = self._inputs(self.texts, chunk)
            with torch.no_grad(), self.processes.encoding(inputs["input_ids"].shape[1]):
                teacher = teacher_states(self.teacher, inputs, self.model)
            yield TinyBatch(inputs, teacher)

    def losses(self, batch: TinyBatch, level: Level) -> Tensor:
        with self.processes.encoding(batch.inputs["input_ids"].shape[1]):
            student = states_of(self.model, batch.inputs, level, attention=True)
        return layer_losses(student, batch.teacher, batch.inputs["attention_mask"], self.extra)


def teacher_states(teacher: ElasticModel, inputs: Mapping[str, Tensor], student: ElasticModel) -> States:
    """The teacher's states at the layers that the student's match, the embeddings first."""
    found = states_of(teacher, inputs, teacher.structures.largest, attention=True)
    layers = matched_layers(student.config.num_hidden_layers, teacher.config.num_hidden_layers)
    hidden = (found.hidden[0], *(found.hidden[layer + 1] for layer in layers))
    return States(hidden, tuple(found.attention[layer] for layer in layers))


def layer_losses(student: States, teacher: States, attention_mask: Tensor, project: nn.Module) -> Tensor:
    """Mean squared errors of embeddings, hidden states and attention logits, summed over layers (equations 7 to 9).

    Args:
        student, teacher: of the same layers.
        attention_mask: LongTensor [texts, tokens]; neither padding nor what is attended to there counts.
        project: student's width -> teacher's.

    Returns:
        FloatTensor [texts].
    """
    mask = attention_mask.float()
    tokens = mask.sum(1)
    pairs = mask[:, :, None] * mask[:, None, :]
    losses = []
    for ours, theirs in zip(student.hidden, teacher.hidden, strict=True):
        apart = F.mse_loss(project(ours).float(), theirs.float(), reduction="none").mean(-1)
        losses.append((apart * mask).sum(1) / tokens)
    for ours, theirs in zip(student.attention, teacher.attention, strict=True):
        apart = F.mse_loss(ours.float(), theirs.float(), reduction="none").mean(1)
        losses.append((apart * pairs).sum((1, 2)) / tokens**2)
    return torch.stack(losses).sum(0)


def projection(student: ElasticModel, teacher: ElasticModel, seed: int) -> nn.Module:
    """Return W_e and W_h, one matrix for all layers: the student's width -> the teacher's; nothing where they agree."""
    ours, theirs = student.config.hidden_size, teacher.config.hidden_size
    if ours == theirs:
        return nn.Identity()
    linear = nn.Linear(ours, theirs)
    initialise(linear, student.config.initializer_range, seed)
    return linear


def check_heads(student: ElasticModel, teacher: ElasticModel) -> None:
    """Raise InputError unless all layers of student and teacher have as many heads, and the teacher enough layers."""
    heads: set[int] = set()
    for model in (student, teacher):
        heads |= set(model.structures[model.structures.largest].heads)
    if len(heads) > 1:
        raise InputError(f"attention is matched head by head, but layers have {sorted(heads)} heads: make the student "
                         "with elasticlm prune --layers or --width")  # fmt: skip
    if student.config.num_hidden_layers > teacher.config.num_hidden_layers:
        raise InputError("the student has more layers than the teacher")
