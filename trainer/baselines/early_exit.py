"""EarlyExitBERT: exits behind several layers (Liu et al. 2022, "Towards Efficient NLP", ElasticBERT; Xin et al. 2020,
DeeBERT, for exits by confidence).

The first layers of an encoder are its submodels. Each has an exit: a classifier of its own, or for retrieval the pooled
hidden state. All exits are trained together. Which one a text takes is fixed to a compute, as the paper enforces it, or
decided by how sure the classifiers are.
"""

import copy
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from elasticlm.errors import InputError
from elasticlm.model.batching import batches_by_length
from elasticlm.model.configuration import Passages
from elasticlm.model.elastic_model import ElasticModel
from elasticlm.model.heads import score
from elasticlm.model.structure import ElasticStructure, Level, level_name
from elasticlm.retrieval.data_specs import load_labelled
from elasticlm.trainer.baselines.states import alone, kept_of, leave_out_empty_layers, of_depth, states_of
from elasticlm.trainer.evaluation import classification
from elasticlm.trainer.evaluation.base import Evaluation
from elasticlm.trainer.objectives.base import Objective
from elasticlm.trainer.objectives.fine_tuning import FineTuning
from elasticlm.trainer.objectives.retrieve import Retrieve
from elasticlm.trainer.training_texts import TokenizedTexts

THRESHOLDS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, math.inf)
"""Entropies in nats below which a text exits."""
BATCH_SIZE = 32


class EarlyExit(Objective):
    """A task's loss at the exit behind each of several layers.

    Levels are exits: level 50 of a model of 12 layers is the exit behind the sixth.

    Args:
        task: the task's objective; its model, a whole encoder, is trained.
        exits: numbers of layers behind which an exit is, any order.
        measured: data specs and splits on which save() measures exits by confidence.

    Raises InputError where there is something to measure and no classes.
    """

    def __init__(
        self, task: FineTuning | Retrieve, *, exits: Sequence[int], measured: Sequence[tuple[str, str]] = ()
    ) -> None:
        if measured and len(task.model.config.labels) < 2:
            raise InputError("--evaluate measures exits by confidence, which needs classes, not a value")
        model = with_exits(task.model, exits)
        super().__init__(model, task.lengths, task.processes, task.chunk_size)
        self.task, self.measured, task.model = task, measured, model
        if isinstance(task, FineTuning):
            assert model.head is not None
            self.extra = nn.ModuleDict({_key(level): copy.deepcopy(model.head) for level in model.levels})
            task.level_heads = {level: self._head(level) for level in model.levels}

    def batches(self, rows: np.ndarray, step: int) -> Any:
        return self.task.batches(rows, step)

    def losses(self, batch: Any, level: Level) -> Tensor:
        return self.task.losses(batch, level)

    def measure(self, batch: Any, level: Level) -> tuple[Tensor, Tensor]:
        return self.task.measure(batch, level)

    def backward(self, batch: Any, level: Level, weight: float) -> Tensor:
        return self.task.backward(batch, level, weight)

    def finish(self, batch: Any) -> None:
        self.task.finish(batch)

    def save(self, folder: Path) -> None:
        """Write every exit as an artifact of its own, in a folder named by the layers before it.

        The passages of a retriever are those of its last exit, which is the teacher of the others.
        """
        passages = Passages()
        for level in self.model.levels:
            model = alone(self.model, level)
            if model.head is not None:
                model.head.load_state_dict(self._head(level).state_dict())
            elif level == self.model.structures.largest:
                model.config.passages = Passages("largest", model.fingerprint())
                passages = Passages("teacher", model.config.passages.fingerprint)
            else:
                model.config.passages = passages
            model.save_pretrained(folder / str(model.config.num_hidden_layers))
        for spec, split in self.measured:
            self._by_confidence(spec, split).write(folder / f"{split}.json", overwrite=True)

    def _by_confidence(self, spec: str, split: str) -> Evaluation:
        """Rows named by the entropy below which a text exits; ``layers`` has the mean of what each ran through.

        The reference is the last exit.
        """
        levels = self.model.levels[::-1]
        layers = [len(kept_of(self.model.structures[level])) for level in levels]
        heads = [self._head(level) for level in levels]
        data = load_labelled(spec, split, self.model.config.labels)
        texts = TokenizedTexts.of_pairs(self.model, data.pairs)
        logits = torch.empty(len(levels), len(texts), len(data.labels))
        for rows in batches_by_length(texts.lengths, max_rows=BATCH_SIZE):
            inputs = self._inputs(texts, rows)
            logits[:, rows] = exit_logits(self.model, heads, layers, inputs).float().cpu()
        taken = {f"{threshold:g}": exits_by_confidence(logits, threshold) for threshold in THRESHOLDS}
        found = {name: logits[exits, torch.arange(len(texts))].argmax(-1).numpy() for name, exits in taken.items()}
        means = {name: round(float(np.array(layers)[exits].mean()), 3) for name, exits in taken.items()}
        return classification.evaluation_of(found, logits[-1].argmax(-1).numpy(), data, layers=means)

    def _head(self, level: Level) -> nn.Module:
        return self.extra.get_submodule(_key(level))


def with_exits(model: ElasticModel, exits: Sequence[int]) -> ElasticModel:
    """Return a model whose levels are the first layers of a whole encoder, in percent of all."""
    whole = model.config.whole
    levels = {_level(layers, whole.layers): of_depth(whole, set(range(layers))) for layers in exits}
    found = model.cut(ElasticStructure(levels))
    leave_out_empty_layers(found)
    return found


@torch.inference_mode()
def exit_logits(
    model: ElasticModel, heads: Sequence[nn.Module], layers: Sequence[int], inputs: Mapping[str, Tensor]
) -> Tensor:
    """Return what each exit answers to a batch, in one pass through the layers: FloatTensor [exits, texts, labels].

    Args:
        heads, layers: the classifier of each exit and the layers before it, in ascending order.
    """
    hidden = states_of(model, inputs, model.structures.largest).hidden
    mask = inputs["attention_mask"]
    return torch.stack(
        [score(model.config, head, hidden[count], mask) for head, count in zip(heads, layers, strict=True)]
    )


def exits_by_confidence(logits: Tensor, threshold: float) -> Tensor:
    """Return the first exit of each text whose entropy is below a threshold in nats, the last if none is.

    Args:
        logits: FloatTensor [exits, texts, labels].

    Returns:
        LongTensor [texts], numbers of exits counted from 0.

    >>> exits_by_confidence(torch.tensor([[[0.0, 0.1], [9.0, 0.0]], [[0.0, 9.0], [9.0, 0.0]]]), 0.3).tolist()
    [1, 0]
    """
    log_p = logits.log_softmax(-1)
    sure = -(log_p.exp() * log_p).sum(-1) < threshold
    sure[-1] = True
    return sure.int().argmax(0)


def _level(layers: int, of: int) -> Level:
    share = round(100 * layers / of, 2)
    return int(share) if share.is_integer() else share


def _key(level: Level) -> str:
    return level_name(level).replace(".", "_")  # a module's name has no dots
