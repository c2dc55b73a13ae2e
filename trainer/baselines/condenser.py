"""Condenser: a pretraining head that reads the first token's last state (Gao and Callan 2021, "Condenser: a
Pre-training Architecture for Dense Retrieval").

The head's layers take the last layer's state of [CLS] and a middle layer's states of all other tokens, so that masked
words can be predicted only by what [CLS] has gathered. ``condenser`` pretrains an encoder with it, on the masked words
of both the head and the encoder; ``condenser-head`` is the paper's variant of distillation "w/ head" (table 7, figure
11).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from elasticlm.errors import InputError
from elasticlm.model.elastic_model import ElasticModel
from elasticlm.model.structure import WHOLE, Level
from elasticlm.trainer.baselines.masked_lm import (
    MaskedBatch,
    MaskedLm,
    copy_encoder,
    fresh_lm,
    load_head,
    save_masked_lm,
    trained_parts,
)
from elasticlm.trainer.baselines.states import states_of
from elasticlm.trainer.layers import initialise, require_like_layers
from elasticlm.trainer.objectives.relations import PARTS, Relations
from elasticlm.trainer.processes import Processes
from elasticlm.trainer.training_texts import TokenizedTexts

HEAD_LAYERS = 2
HEAD_FILE = "condenser_head.safetensors"


class CondenserHead(nn.Module):
    """Layers over the last state of [CLS] and the middle states of all other tokens.

    Args:
        model: the encoder, whose layers the head's are like.
    """

    def __init__(self, model: ElasticModel) -> None:
        super().__init__()
        require_like_layers(model)
        config, family = model.config, model.encoder.family
        self.heads, self.neurons = config.num_attention_heads, config.intermediate_size
        self.layers = nn.ModuleList(family.layer(config, i, self.heads, self.neurons) for i in range(HEAD_LAYERS))

    def forward(self, model: ElasticModel, inputs: Mapping[str, Tensor], *, layers: int | None = None) -> Tensor:
        """Return [batch, tokens, dim], after all layers of the head or the first so many."""
        hidden, context = self._condensed(model, inputs)
        for layer in self.layers[:layers]:
            hidden = layer(hidden, context, heads=self.heads, neurons=self.neurons, dropout=model.dropout_at(WHOLE))
        return hidden

    def _condensed(self, model: ElasticModel, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Any]:
        """What the head's first layer takes in, and the context of its attention."""
        states = states_of(model, inputs, WHOLE).hidden
        late, middle = states[-1], states[len(states) // 2]
        context = model.encoder.context(late.shape[1], inputs["attention_mask"])
        return torch.cat([late[:, :1], middle[:, 1:]], dim=1), context


class Condenser(MaskedLm):
    """Pretrain an encoder on masked words, predicted by the Condenser head and by the encoder itself.

    Args:
        source: folder or hub name of the encoder, which has a masked language model head.
    """

    def __init__(
        self, model: ElasticModel, texts: TokenizedTexts, *, source: str, processes: Processes, chunk_size: int,
        seed: int,
    ) -> None:  # fmt: skip
        super().__init__(model, texts, processes=processes, chunk_size=chunk_size, seed=seed)
        self.source = source
        self.masked_lm, self._head = fresh_lm(model, seed)
        self._head.load_state_dict(load_head(model, source).state_dict())
        model.encoder.embeddings.requires_grad_(False)  # the words are those that the head predicts
        self.condenser = CondenserHead(model)
        initialise(self.condenser, model.config.initializer_range, seed)
        self.extra = nn.ModuleList(
            [trained_parts(self._head.to(processes.device)), self.condenser.to(processes.device)]
        )

    def losses(self, batch: MaskedBatch, level: Level) -> Tensor:
        with self.processes.encoding(batch.inputs["input_ids"].shape[1]):
            late = self.model.hidden(**batch.inputs, level=level).float()
            condensed = self.condenser(self.model, batch.inputs).float()
        terms = [F.cross_entropy(self._head(hidden[batch.masked]), batch.words, reduction="none")
                 for hidden in (late, condensed)]  # fmt: skip
        return batch.per_text(torch.stack(terms).sum(0))

    def save(self, folder: Path) -> None:
        """Write a copy of the encoder's folder with the new weights, and the Condenser head next to them."""
        copy_encoder(self.model, self.masked_lm)
        save_masked_lm(self.masked_lm, self.source, folder)
        safetensors.torch.save_file(self.condenser.state_dict(), folder / HEAD_FILE)


class CondenserHeadRelations(Relations):
    """Keep the relations of the Condenser head's last layer instead of the encoder's own.

    Args:
        head_file: weights of the head, as ``condenser`` writes them.
    """

    def __init__(self, model: ElasticModel, teacher: ElasticModel, texts: TokenizedTexts, *, head_file: Path,
                 **options: Any) -> None:  # fmt: skip
        super().__init__(model, teacher, texts, **options)
        if not head_file.is_file():
            raise InputError(
                f"--teacher has no Condenser head ({head_file.name}): make one with `elasticlm baseline condenser`"
            )
        self.head = CondenserHead(teacher).to(self.processes.device)
        self.head.load_state_dict(safetensors.torch.load_file(head_file))

    def _teacher_states(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        last: Any = self.head.layers[-1]
        with self.processes.encoding(inputs["input_ids"].shape[1]):
            seen = last.attention_input(self.head(self.teacher, inputs, layers=HEAD_LAYERS - 1))
            query, key, value = (getattr(last.attention, name)(seen).float() for name in PARTS)
            return query, key, value
