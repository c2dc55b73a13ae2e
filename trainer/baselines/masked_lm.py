"""Masked language modelling: the first stage of BM25+LM-Ranker Distil, and a head for teachers that have lost theirs.

``lm-distil`` matches the teacher's distribution over the words at masked places (Gao et al. 2020, "Understanding BERT
Rankers Under Distillation", after Sanh et al. 2019); ``kd --task rerank`` is the second stage. ``lm-head`` trains the
head alone on a frozen encoder: sentence encoders come without one, and the paper scores units by masked words.
"""

import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from elasticlm.model.download import resolve_model
from elasticlm.model.elastic_model import ElasticModel
from elasticlm.model.sentence_settings import SentenceFiles
from elasticlm.model.structure import WHOLE, Level
from elasticlm.trainer.baselines.tinybert import projection
from elasticlm.trainer.layers import initialise
from elasticlm.trainer.masking import UNMASKED, Masking
from elasticlm.trainer.objectives.base import Objective
from elasticlm.trainer.objectives.fine_tuning import soft_losses
from elasticlm.trainer.processes import Processes
from elasticlm.trainer.training_texts import TokenizedTexts

TEMPERATURE = 2.0
WEIGHTS = ("*.safetensors", "*.bin")


@dataclass(frozen=True)
class MaskedBatch:
    """Texts with masked words: ``words`` are those at the masked places, ``texts`` their rows, LongTensors [masked].

    ``teacher``: its logits there, FloatTensor [masked, vocabulary], where there is a teacher.
    """

    inputs: Mapping[str, Tensor]
    masked: Tensor
    words: Tensor
    texts: Tensor
    teacher: Tensor | None = None

    def per_text(self, values: Tensor) -> Tensor:
        """Means over each text's masked places, [texts]; 0 where there are none."""
        count = len(self.inputs["input_ids"])
        sums = torch.zeros(count, device=values.device).index_add(0, self.texts, values)
        return sums / self.masked.sum(1).clamp(min=1)


class MaskedLm(Objective):
    """Base of what is trained on masked words.

    Args:
        texts: training texts.
    """

    def __init__(
        self, model: ElasticModel, texts: TokenizedTexts, *, processes: Processes, chunk_size: int, seed: int
    ) -> None:
        super().__init__(model, texts.lengths, processes, chunk_size)
        self.texts, self._seed = texts, seed

    def batches(self, rows: np.ndarray, step: int) -> Iterator[MaskedBatch]:
        for chunk in self._chunks(rows):
            inputs = self.texts.inputs(chunk)
            seed = np.random.default_rng([self._seed, 6, step, int(chunk[0])]).integers(2**31)
            ids, labels = Masking(self.model.tokenizer, int(seed))(inputs["input_ids"])
            device = self.processes.device
            found = {name: tensor.to(device) for name, tensor in (inputs | {"input_ids": ids}).items()}
            masked = (labels != UNMASKED).to(device)
            yield MaskedBatch(found, masked, labels[labels != UNMASKED].to(device), masked.nonzero()[:, 0])

    def _hidden(self, model: ElasticModel, batch: MaskedBatch, level: Level) -> Tensor:
        """Hidden states at the masked places, [masked, dim]."""
        with self.processes.encoding(batch.inputs["input_ids"].shape[1]):
            return model.hidden(**batch.inputs, level=level).float()[batch.masked]


class LmDistillation(MaskedLm):
    """Match the teacher's distribution over words at masked places.

    The student predicts with the teacher's own head, behind a projection if it is narrower.

    Args:
        head: the teacher's language model head, hidden states [masked, dim] -> logits [masked, vocabulary].
    """

    def __init__(
        self, model: ElasticModel, teacher: ElasticModel, texts: TokenizedTexts, *, head: nn.Module,
        processes: Processes, chunk_size: int, seed: int,
    ) -> None:  # fmt: skip
        super().__init__(model, texts, processes=processes, chunk_size=chunk_size, seed=seed)
        self.teacher, self._head = teacher, head.to(processes.device).requires_grad_(False)
        self.extra = projection(model, teacher, seed).to(processes.device)

    def batches(self, rows: np.ndarray, step: int) -> Iterator[MaskedBatch]:
        for batch in super().batches(rows, step):
            with torch.no_grad():
                logits = self._head(self._hidden(self.teacher, batch, self.teacher.structures.largest))
            yield MaskedBatch(batch.inputs, batch.masked, batch.words, batch.texts, logits)

    def losses(self, batch: MaskedBatch, level: Level) -> Tensor:
        logits = self._head(self.extra(self._hidden(self.model, batch, level)))
        assert batch.teacher is not None
        return batch.per_text(soft_losses(logits, batch.teacher, TEMPERATURE))


class LmHead(MaskedLm):
    """Train a masked language model head on the encoder as it is; its output words are the input words.

    Args:
        source: folder or hub name of the encoder.
    """

    def __init__(
        self, model: ElasticModel, texts: TokenizedTexts, *, source: str, processes: Processes, chunk_size: int,
        seed: int,
    ) -> None:  # fmt: skip
        super().__init__(model, texts, processes=processes, chunk_size=chunk_size, seed=seed)
        self.source = source
        self.masked_lm, self._head = fresh_lm(model, seed)
        model.requires_grad_(False)
        self.extra = trained_parts(self._head.to(processes.device))

    def losses(self, batch: MaskedBatch, level: Level) -> Tensor:
        with torch.no_grad():
            hidden = self._hidden(self.model, batch, WHOLE)
        return batch.per_text(F.cross_entropy(self._head(hidden), batch.words, reduction="none"))

    def save(self, folder: Path) -> None:
        """Write a copy of the encoder's folder, with the head, as Hugging Face's class has it."""
        save_masked_lm(self.masked_lm, self.source, folder)


def fresh_lm(model: ElasticModel, seed: int) -> tuple[Any, nn.Module]:
    """Return Hugging Face's masked language model of an encoder, and its head, whose dense layer is drawn anew."""
    family = model.encoder.family
    own = family.own_config(model.config)
    masked_lm = family.class_named("ForMaskedLM")(own)
    copy_encoder(model, masked_lm)
    head: Any = family.lm_head(masked_lm)
    words = masked_lm.get_output_embeddings().weight
    for part in head.modules():
        if isinstance(part, nn.Linear) and part.weight is not words:
            initialise(part, model.config.initializer_range, seed)
    words.requires_grad_(False)  # those of the input
    return masked_lm, head


def trained_parts(head: nn.Module) -> nn.ParameterList:
    """The parameters of a head that are trained, each once: its words are the input's, and some heads share a bias."""
    return nn.ParameterList(parameter for parameter in head.parameters() if parameter.requires_grad)


@torch.no_grad()
def copy_encoder(model: ElasticModel, masked_lm: Any) -> None:
    """Copy the weights of a whole encoder, units in the teacher's order, into Hugging Face's model."""
    ours = model.state_dict()
    for name, weight in model.encoder.family.elastic_weights(masked_lm.base_model).items():
        weight.copy_(ours[name])


def save_masked_lm(masked_lm: Any, source: str, folder: Path) -> None:
    """Copy an encoder's folder (pooling, tokenizer and all), with these weights in place of its own."""
    origin = resolve_model(source)
    shutil.copytree(origin, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(*WEIGHTS, ".*"))
    masked_lm.save_pretrained(folder / SentenceFiles.of(origin).transformer.relative_to(origin))


def load_head(teacher: ElasticModel, source: str) -> nn.Module:
    """Load the language model head of a teacher's folder. Raises InputError where it has none."""
    head: Callable[[Tensor], Tensor] = teacher.encoder.family.load_lm_head(
        SentenceFiles.of(resolve_model(source)).transformer
    )
    assert isinstance(head, nn.Module)
    return head
