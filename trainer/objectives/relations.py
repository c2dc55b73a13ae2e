"""relations (``distil``): the teacher's self-attention relations are kept at every level (ElasticLM, section 4.2)."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from elasticlm.model.elastic_model import ElasticModel
from elasticlm.model.structure import Level
from elasticlm.trainer.layers import initialise
from elasticlm.trainer.objectives.base import Objective
from elasticlm.trainer.processes import Processes
from elasticlm.trainer.training_texts import TokenizedTexts

PARTS = ("query", "key", "value")


@dataclass(frozen=True)
class RelationBatch:
    """Texts and the teacher's query, key and value states of its last layer, [texts, tokens, dim] each."""

    inputs: Mapping[str, Tensor]
    teacher: tuple[Tensor, Tensor, Tensor]


class Relations(Objective):
    """Keep the self-attention relations of the teacher's last layer (MiniLMv2), at every level.

    One additional full-width attention block is applied to the student's last hidden state. It is initialised from the
    queries, keys and values of the teacher's last layer if that has the student's width, else at random; it is trained
    and checkpointed, but not part of the artifact.

    Args:
        teacher: a model whose largest level keeps every head of the last layer; of any width.
        texts: training texts.
        teacher_texts: the same as the teacher tokenises them, into as many tokens; None: as the student does.
        relation_heads: R, into which the merged heads are split anew; divides both hidden sizes.
        scale: "sqrt" divides by sqrt(dim / R) as MiniLMv2, "plain" by dim / R as ElasticLM prints it.
    """

    def __init__(
        self,
        model: ElasticModel,
        teacher: ElasticModel,
        texts: TokenizedTexts,
        *,
        teacher_texts: TokenizedTexts | None = None,
        relation_heads: int,
        scale: str,
        processes: Processes,
        chunk_size: int,
        seed: int = 0,
    ) -> None:
        super().__init__(model, texts.lengths, processes, chunk_size)
        self.teacher, self.texts, self.teacher_texts = teacher, texts, teacher_texts
        self.relation_heads, self.scale = relation_heads, scale
        self.extra = self._block(seed).to(processes.device)

    def _block(self, seed: int) -> nn.ModuleDict:
        """The student's additional block."""
        width = self.model.config.hidden_size
        if width == self.teacher.config.hidden_size:
            last: Any = self.teacher.encoder.layers[-1].attention
            return nn.ModuleDict({name: copy.deepcopy(getattr(last, name)) for name in PARTS})
        block = nn.ModuleDict({name: nn.Linear(width, width) for name in PARTS})
        initialise(block, self.model.config.initializer_range, seed)
        return block

    def batches(self, rows: np.ndarray, step: int) -> Iterator[RelationBatch]:
        for chunk in self._chunks(rows):
            inputs = self._inputs(self.texts, chunk)
            theirs = inputs if self.teacher_texts is None else self._inputs(self.teacher_texts, chunk)
            with torch.no_grad():
                states = self._teacher_states(theirs)
            yield RelationBatch(inputs, states)

    def _teacher_states(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        return self._last_states(self.teacher, inputs, self.teacher.structures.largest)

    def _last_states(
        self, model: ElasticModel, inputs: Mapping[str, Tensor], level: Level
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of a model's own last layer, [batch, tokens, dim] each."""
        structure = model.structures[level]
        last: Any = model.encoder.layers[-1]
        with self.processes.encoding(inputs["input_ids"].shape[1]):
            dropout = model.dropout_at(level)
            hidden = model.encoder(**inputs, structure=structure, layers=structure.layers - 1, dropout=dropout)
            seen = last.attention_input(hidden)
            query, key, value = (getattr(last.attention, name)(seen).float() for name in PARTS)
            return query, key, value

    def _student_states(self, inputs: Mapping[str, Tensor], level: Level) -> Sequence[Tensor]:
        with self.processes.encoding(inputs["input_ids"].shape[1]):
            hidden = self.model.hidden(**inputs, level=level)
            extra = cast(nn.ModuleDict, self.extra)
            return [extra[name](hidden).float() for name in PARTS]

    def losses(self, batch: RelationBatch, level: Level) -> Tensor:
        mask = batch.inputs["attention_mask"]
        student = self._student_states(batch.inputs, level)
        losses = [relation_losses(of_teacher, of_student, mask, self.relation_heads, self.scale)
                  for of_teacher, of_student in zip(batch.teacher, student, strict=True)]  # fmt: skip
        return torch.stack(losses).sum(0)


def relation_losses(teacher: Tensor, student: Tensor, attention_mask: Tensor, heads: int, scale: str) -> Tensor:
    """KL(teacher || student) of one self-attention relation, the mean over relation heads and the text's tokens.

    Reln(X) = softmax(X X^T / sqrt(d_R)) for each of ``heads`` relation heads of width d_R; columns of padding are
    masked before the softmax, rows of padding are left out (MiniLMv2, section 3.1; ElasticLM, equations 7 and 8).

    Args:
        teacher, student: FloatTensor [texts, tokens, dim]; the two dims may differ.
        attention_mask: LongTensor [texts, tokens].

    Returns:
        FloatTensor [texts].
    """
    target = _log_relations(teacher, attention_mask, heads, scale)
    predicted = _log_relations(student, attention_mask, heads, scale)
    columns = attention_mask[:, None, None, :].bool()
    terms = (target.exp() * (target - predicted)).masked_fill(~columns, 0.0)  # [texts, heads, tokens, tokens]
    rows = attention_mask.to(terms.dtype)
    return (terms.sum(-1).mean(1) * rows).sum(1) / rows.sum(1)


def _log_relations(states: Tensor, attention_mask: Tensor, heads: int, scale: str) -> Tensor:
    """Log of the relations, FloatTensor [texts, heads, tokens, tokens]; padding columns are as good as -inf."""
    x = states.unflatten(-1, (heads, -1)).transpose(1, 2)
    width = x.shape[-1]
    scores = x @ x.mT / (width**0.5 if scale == "sqrt" else width)
    return scores.masked_fill(~attention_mask[:, None, None, :].bool(), torch.finfo(scores.dtype).min).log_softmax(-1)
