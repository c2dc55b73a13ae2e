"""What layer-wise distillation matches: the hidden states and attention logits of every layer, and levels by depth."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from elasticlm.model.elastic_model import ElasticModel
from elasticlm.model.structure import ElasticStructure, Level, Structure
from elasticlm.trainer.layers import keep_layers, require_like_layers


@dataclass(frozen=True)
class States:
    """Of one pass over a batch.

    Attributes:
        hidden: what the embeddings and each layer give, [batch, tokens, dim] each.
        attention: logits of each layer before the softmax, [batch, heads, tokens, tokens]; none unless asked for.
    """

    hidden: tuple[Tensor, ...]
    attention: tuple[Tensor, ...] = ()


def states_of(model: ElasticModel, inputs: Mapping[str, Tensor], level: Level, *, attention: bool = False) -> States:
    """Run a level and return the states of all its layers, with gradients where enabled."""
    require_like_layers(model.at(level))
    encoder, structure = model.encoders[level]
    with _seen_by(encoder.layers) as seen:
        last = encoder(**inputs, structure=structure, dropout=model.dropout_at(level))
    logits: tuple[Tensor, ...] = ()
    if attention:
        logits = tuple(attention_logits(layer, hidden, heads)
                       for layer, hidden, heads in zip(encoder.layers, seen, structure.heads, strict=True))  # fmt: skip
    return States((*seen, last), logits)


def attention_logits(layer: Any, hidden: Tensor, heads: int) -> Tensor:
    """Logits of a layer's first heads, Q K^T / sqrt(head size), [batch, heads, tokens, tokens]; padding is not masked.

    Args:
        hidden: what the layer takes in, [batch, tokens, dim].
    """
    attention, seen = layer.attention, layer.attention_input(hidden)
    width = heads * attention.head_size
    query, key = (nn.functional.linear(seen, part.weight[:width], part.bias[:width]).unflatten(-1, (heads, -1))
                  .transpose(1, 2) for part in (attention.query, attention.key))  # fmt: skip
    return query @ key.mT / attention.head_size**0.5


@contextmanager
def _seen_by(layers: nn.ModuleList) -> Iterator[list[Tensor]]:
    """Collect what each layer takes in, in their order."""
    seen: list[Tensor] = []
    handles = [layer.register_forward_pre_hook(lambda module, args: seen.append(args[0])) for layer in layers]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


# -- Levels by depth ---------------------------------------------------------------------------------------------------


def of_depth(structure: Structure, layers: set[int]) -> Structure:
    """The structure without the units of all other layers, counted from 0."""
    kept = [i in layers for i in range(structure.layers)]
    heads, neurons = (tuple(units * keep for units, keep in zip(all_units, kept, strict=True))
                      for all_units in (structure.heads, structure.neurons))  # fmt: skip
    return Structure(heads, neurons)


def kept_of(structure: Structure) -> list[int]:
    """The layers that keep any unit, counted from 0."""
    return [i for i, units in enumerate(zip(structure.heads, structure.neurons, strict=True)) if any(units)]


def leave_out_empty_layers(model: ElasticModel) -> None:
    """Let hidden states pass a layer of which a level keeps nothing as they are.

    Elsewhere such a layer still adds its biases and normalises; a network of fewer layers does not have it at all.
    """
    require_like_layers(model)

    def passed_by(layer: nn.Module, args: Any, kwargs: Any, output: Tensor) -> Tensor:
        return output if kwargs["heads"] or kwargs["neurons"] else args[0]

    for layer in model.encoder.layers:
        layer.register_forward_hook(passed_by, with_kwargs=True)


def alone(model: ElasticModel, level: Level) -> ElasticModel:
    """A level as a model of its own that has only the layers of which the level keeps something."""
    cut = model.cut(ElasticStructure({level: model.structures[level]}))
    return keep_layers(cut, kept_of(model.structures[level]))
