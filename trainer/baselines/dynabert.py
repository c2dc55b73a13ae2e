"""DynaBERT: one network whose width and depth adapt (Hou et al. 2020, "DynaBERT: Dynamic BERT with Adaptive Width and
Depth").

Heads and neurons are sorted by importance within each layer ("network rewiring"), and a submodel of width w keeps the
same share w of every layer; one of depth d leaves out every 1/(1-d)-th layer as a whole. Submodels are trained together
to match a fine-tuned teacher's logits and the hidden states of the layers they have: first by width alone, then, with
that network as the teacher, by width and depth.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from elasticlm.errors import InputError
from elasticlm.model.elastic_model import ElasticModel
from elasticlm.model.structure import WHOLE, ElasticStructure, Level, Structure, level_name
from elasticlm.trainer.baselines.state_matching import StateMatching, TaughtBatch, token_losses
from elasticlm.trainer.baselines.states import alone, kept_of, leave_out_empty_layers, of_depth
from elasticlm.trainer.objectives.fine_tuning import FineTuning, soft_losses

STATES_WEIGHT = {"width": 0.1, "depth": 1.0}  # lambda_2 of the two stages as the authors set it, lambda_1 being 1


class DynaBert(StateMatching):
    """Match a teacher's logits and hidden states at every width and depth.

    Args:
        task: the task's objective; its model has level 100 with weights of its own, units in order of importance.
        teacher: a fine-tuned model of the same width and depth.
        levels: share of the prunable parameters of each submodel, in percent.
        depths: share of the layers that each keeps; all 1: the stage that adapts the width alone.
    """

    def __init__(
        self, task: FineTuning, teacher: ElasticModel, *, levels: Sequence[Level], depths: Sequence[float]
    ) -> None:
        whole = task.model
        if WHOLE not in whole.trained_levels:
            raise InputError("dynabert needs a model with a trained level 100: elasticlm prune --top shared")
        structures = {level: submodel(whole.config.whole, level / 100, depth)
                      for level, depth in zip(levels, depths, strict=True)}  # fmt: skip
        model = whole.cut(ElasticStructure(structures))
        leave_out_empty_layers(model)
        super().__init__(task, model, teacher)
        self.weight = STATES_WEIGHT["width" if min(depths) == 1 else "depth"]

    def losses(self, batch: TaughtBatch, level: Level) -> Tensor:
        outputs, hidden = self.run(self.model, batch.of_task.inputs, level)
        mask = batch.of_task.inputs["attention_mask"]
        kept = [0, *(layer + 1 for layer in kept_of(self.model.structures[level]))]  # 0: the embeddings
        apart = torch.stack([token_losses(hidden[i], batch.hidden[i], mask) for i in kept]).sum(0)
        ours, theirs = (self.task.choices(found, batch.of_task) for found in (outputs, batch.outputs))
        return soft_losses(ours, theirs) + self.weight * self.task.per_example(apart, batch.of_task)

    def save(self, folder: Path) -> None:
        """Write every submodel as an artifact of its own, in a folder named by its level."""
        for level in self.model.levels:
            alone(self.model, level).save_pretrained(folder / level_name(level))


def submodel(whole: Structure, share: float, depth: float) -> Structure:
    """Return the structure that keeps a share of the units over all layers, in the layers that a depth keeps.

    Every one of these keeps the same share of its units, share / depth.

    >>> submodel(Structure((12,) * 6, (48,) * 6), 0.25, 0.5)
    Structure(heads=(0, 6, 0, 6, 0, 6), neurons=(0, 24, 0, 24, 0, 24))
    """
    if not 0 < share <= depth <= 1:
        raise InputError(f"--depths {depth:g}: expected the share of the layers to keep, at most 1 and at least the "
                         f"level, {share:g}")  # fmt: skip
    layers = depth_layers(whole.layers, depth)
    width = share * whole.layers / len(layers)
    heads, neurons = (tuple(max(1, round(width * units)) for units in all_units)
                      for all_units in (whole.heads, whole.neurons))  # fmt: skip
    return of_depth(Structure(heads, neurons), set(layers))


def depth_layers(count: int, depth: float) -> list[int]:
    """Return the layers, counted from 0, that remain where every 1/(1-depth)-th is left out.

    Layer d, counted from 1, goes where d + 1 is a multiple of 1/(1-depth) (Hou et al. 2020, section 2.2).

    >>> depth_layers(12, 0.75), depth_layers(6, 0.5)
    ([0, 1, 3, 4, 5, 7, 8, 9, 11], [1, 3, 5])
    """
    if depth == 1:
        return list(range(count))
    step = round(1 / (1 - depth))
    return [layer for layer in range(count) if (layer + 2) % step] or [count - 1]
