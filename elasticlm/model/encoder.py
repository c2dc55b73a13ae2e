"""The elastic encoder: layers of a family, of which a prefix of heads and neurons runs."""

from typing import Any, cast

from torch import Tensor, nn

from elasticlm.model.configuration import ElasticConfig
from elasticlm.model.dropout import NO_DROPOUT, Dropout
from elasticlm.model.families import family_of
from elasticlm.model.structure import Structure


class ElasticEncoder(nn.Module):
    """An encoder of the largest structure that runs any structure nested in it.

    Args:
        config: names the family and has its sizes.
        structure: the largest structure; its units are allocated, in rank order.
    """

    def __init__(self, config: ElasticConfig, structure: Structure) -> None:
        super().__init__()
        self.family = family_of(config.family)
        self.embeddings = self.family.embeddings(config)
        self.layers = nn.ModuleList(
            self.family.layer(config, index, heads, neurons)
            for index, (heads, neurons) in enumerate(zip(structure.heads, structure.neurons, strict=True))
        )
        self.final = self.family.final(config)

    @property
    def words(self) -> nn.Embedding:
        """The word embeddings, which every family has."""
        return cast(nn.Embedding, self.embeddings.word)

    def context(self, tokens: int, attention_mask: Tensor | None) -> Any:
        """What all layers of a pass share, see EncoderFamily.context; arguments as of forward()."""
        mask = None
        if attention_mask is not None and not bool(attention_mask.all()):
            mask = attention_mask[:, None, None, :].bool()
        return self.family.context(self, tokens, mask)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        token_type_ids: Tensor | None = None,
        *,
        structure: Structure,
        layers: int | None = None,
        dropout: Dropout = NO_DROPOUT,
    ) -> Tensor:
        """Return the hidden states of the submodel ``structure``.

        Args:
            input_ids: LongTensor [batch, tokens].
            attention_mask: LongTensor [batch, tokens], 1 for tokens and 0 for padding; None: nothing is padded.
            token_type_ids: LongTensor [batch, tokens], or None for all 0.
            structure: heads and neurons of each layer to run.
            layers: run only the first so many layers, without what follows the last one (None: all of them).
            dropout: rates at which values are dropped, for training.

        Returns:
            FloatTensor [batch, tokens, dim].
        """
        hidden = self.embeddings(input_ids, token_type_ids, dropout=dropout.embeddings)
        context = self.context(input_ids.shape[1], attention_mask)
        kept = list(zip(self.layers, structure.heads, structure.neurons, strict=True))
        for layer, heads, neurons in kept[:layers]:
            hidden = layer(hidden, context, heads=heads, neurons=neurons, dropout=dropout)
        return hidden if layers is not None else self.final(hidden)
