"""EarlyExitBERT: exits behind several layers (Liu et al. 2022, "Towards Efficient NLP", ElasticBERT; Xin et al. 2020,
DeeBERT, for exits by confidence).

The first layers of an encoder are its submodels. Each has an exit: a classifier of its own, or for retrieval the pooled
hidden state. All exits are trained together. Which one a text takes is fixed to a compute, as the paper enforces it, or
decided by how sure the classifiers are.
"""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from elasticlm.model.elastic_model import ElasticModel
from elasticlm.model.heads import score
from elasticlm.model.structure import ElasticStructure, Level, level_name
from elasticlm.trainer.baselines.states import alone, kept_of, leave_out_empty_layers, of_depth, states_of
from elasticlm.trainer.objectives.base import Objective
from elasticlm.trainer.objectives.fine_tuning import FineTuning
from elasticlm.trainer.objectives.retrieve import Retrieve


class EarlyExit(Objective):
    """A task's loss at the exit behind each of several layers.

    Levels are exits: level 50 of a model of 12 layers is the exit behind the sixth.

    Args:
        task: the task's objective; its model, a whole encoder, is trained.
        exits: numbers of layers behind which an exit is, any order.
    """

    def __init__(self, task: FineTuning | Retrieve, *, exits: Sequence[int]) -> None:
        model = with_exits(task.model, exits)
        super().__init__(model, task.lengths, task.processes, task.chunk_size)
        self.task, task.model = task, model
        if isinstance(task, FineTuning):
            self.extra = nn.ModuleDict({_key(level): copy.deepcopy(model.head) for level in model.levels})
            task.outputs = self._outputs  # type: ignore[method-assign]  # each exit by its own classifier

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
        """Write every exit as an artifact of its own, in a folder named by the layers before it."""
        for level in self.model.levels:
            model = alone(self.model, level)
            if model.head is not None:
                model.head.load_state_dict(self._head(level).state_dict())
            model.save_pretrained(folder / str(model.config.num_hidden_layers))

    def _head(self, level: Level) -> nn.Module:
        return self.extra.get_submodule(_key(level))

    def _outputs(self, model: ElasticModel, inputs: Mapping[str, Tensor], level: Level) -> tuple[Tensor, Tensor]:
        with self.processes.encoding(inputs["input_ids"].shape[1]):
            hidden = model.hidden(**inputs, level=level)
            found = score(model.config, self._head(level), hidden, inputs["attention_mask"])
            return found.float(), hidden.float()


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
