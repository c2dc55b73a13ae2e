"""MiniLM: relations of the last layer, in a student of fewer layers or another width (Wang et al. 2021, "MiniLMv2:
Multi-Head Self-Attention Relation Distillation").

ElasticLM without elasticity differs from it in that its structure is pruned instead of random (section 5.2).
"""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from elasticlm.model.structure import Level
from elasticlm.trainer.objectives.relations import Relations


class MiniLm(Relations):
    """Keep the relations of the teacher's last layer in the student's own last layer, with no additional block."""

    def _block(self, seed: int) -> nn.ModuleDict:
        return nn.ModuleDict()

    def _student_states(self, inputs: Mapping[str, Tensor], level: Level) -> Sequence[Tensor]:
        return self._last_states(self.model, inputs, level)
