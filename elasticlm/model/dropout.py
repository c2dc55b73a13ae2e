"""Dropout in training: the places where an encoder drops values, and the rates (Srivastava et al. 2014).

Rates are an argument of the modules' forward(), as structures are: a module that is not given any drops nothing, so
evaluation, serving and export cannot. Masks come from PyTorch's global generators.
"""

from dataclasses import dataclass, fields

from torch import Tensor
from torch.nn import functional as F

from elasticlm.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Dropout:
    """Rates at which values are set to 0 in training, by place; the others grow by 1 / (1 - rate).

    Attributes:
        embeddings: the embeddings, behind their norm.
        attention: attention probabilities.
        attention_output: what an attention block adds to the hidden states.
        neurons: what the neurons give.
        feed_forward_output: what a feed-forward network adds to the hidden states.
        summary: what the first layer of a head with a pooler takes in.
        head: what the last layer of a head takes in.
    """

    embeddings: float = 0.0
    attention: float = 0.0
    attention_output: float = 0.0
    neurons: float = 0.0
    feed_forward_output: float = 0.0
    summary: float = 0.0
    head: float = 0.0

    def __post_init__(self) -> None:
        for field in fields(self):
            if not 0 <= getattr(self, field.name) < 1:
                raise InputError(f"dropout of {field.name}: expected a rate from 0 to below 1, "
                                 f"not {getattr(self, field.name)}")  # fmt: skip


NO_DROPOUT = Dropout()


def drop(x: Tensor, rate: float) -> Tensor:
    """Drop entries of a tensor at this rate; at rate 0 it is returned as it is."""
    return F.dropout(x, rate) if rate else x


def drop_block(block: Tensor, rate: float, hidden: Tensor) -> Tensor:
    """Drop entries of what a block adds to the hidden states [batch, tokens, dim].

    A block without units gives its bias [dim] alone, which has a mask of its own for each token.
    """
    return F.dropout(block.expand_as(hidden), rate) if rate else block
