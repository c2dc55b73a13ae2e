"""Students by layers and width: some layers of a teacher, or an encoder of other sizes from random weights.

The elastic structure of the paper keeps heads and neurons; the systems that it is compared with keep layers ("4L;768H")
or start from a narrower encoder ("4L;384H").
"""

import copy
from collections.abc import Sequence

import torch
from torch import nn

from elasticlm.errors import InputError
from elasticlm.model.configuration import Passages
from elasticlm.model.elastic_model import ElasticModel
from elasticlm.model.families.post_norm import PostNormFamily
from elasticlm.model.structure import WHOLE, ElasticStructure, Structure

LAYERS = "encoder.layers."


def matched_layers(count: int, of: int) -> list[int]:
    """Return the layers, counted from 0, that ``count`` layers of a student match in a teacher of ``of`` layers.

    TinyBERT's uniform mapping g(m) = m N / M (Jiao et al. 2020, section 3.1), rounded up; the last is among them.

    >>> matched_layers(4, 12), matched_layers(4, 6)
    ([2, 5, 8, 11], [1, 2, 4, 5])
    """
    return [-(-(m * of) // count) - 1 for m in range(1, count + 1)]


def keep_layers(model: ElasticModel, layers: Sequence[int]) -> ElasticModel:
    """Return a new model with these layers of another, counted from 0, at every level.

    Raises InputError where the layers of the family are not alike, such as ModernBERT's.
    """
    require_like_layers(model)
    config = copy.deepcopy(model.config)
    config.num_hidden_layers = len(layers)
    config.levels = ElasticStructure({
        level: Structure(tuple(kept.heads[i] for i in layers), tuple(kept.neurons[i] for i in layers))
        for level, kept in model.structures.nested.items()
    }).to_json()  # fmt: skip
    weights = {name: weight for name, weight in model.state_dict().items() if not name.startswith(LAYERS)}
    for new, old in enumerate(layers):
        start = f"{LAYERS}{old}."
        weights |= {f"{LAYERS}{new}.{name.removeprefix(start)}": weight
                    for name, weight in model.state_dict().items() if name.startswith(start)}  # fmt: skip
    kept_model = ElasticModel.without_weights(config, model.tokenizer)
    kept_model.load_state_dict({name: weight.detach().clone() for name, weight in weights.items()}, assign=True)
    return kept_model


def shaped_student(teacher: ElasticModel, layers: int | None, width: int | None, seed: int) -> ElasticModel:
    """Return a whole encoder with so many of the teacher's layers, or, of another width, with random weights.

    Raises InputError where the sizes do not fit the teacher.
    """
    most = teacher.config.num_hidden_layers
    if layers is not None and layers > most:
        raise InputError(f"--layers {layers}: the teacher has {most}")
    if width is not None and width != teacher.config.hidden_size:
        return fresh_student(teacher, layers=layers or most, width=width, seed=seed)
    return keep_layers(teacher, matched_layers(layers or most, most))


def fresh_student(teacher: ElasticModel, *, layers: int, width: int, seed: int) -> ElasticModel:
    """Return a whole encoder of other sizes with random weights, of the teacher's family, heads and vocabulary.

    As in TinyBERT and MiniLM, the number of heads stays and their width shrinks with the model's; neurons keep their
    ratio to the width. Weights are drawn as BERT's are: normal with the configuration's standard deviation, biases 0.

    Raises InputError where the sizes do not fit the family.
    """
    require_like_layers(teacher)
    config = copy.deepcopy(teacher.config)
    heads = config.num_attention_heads
    if width % heads or width > config.hidden_size:
        raise InputError(
            f"--width {width}: expected a multiple of {heads}, the heads, and at most {config.hidden_size}"
        )
    if config.dense:
        raise InputError(f"--width {width}: the teacher has Dense modules behind its pooling, which fit its own width")
    config.intermediate_size = config.intermediate_size * width // config.hidden_size
    config.hidden_size, config.num_hidden_layers = width, layers
    config.levels = ElasticStructure({WHOLE: config.whole}).to_json()
    config.passages = Passages()
    student = ElasticModel(config, teacher.tokenizer)
    initialise(student, config.initializer_range, seed)
    return student


@torch.no_grad()
def initialise(module: nn.Module, deviation: float, seed: int) -> None:
    """Draw matrices and embeddings anew as BERT does: normal with a standard deviation, biases 0, norms 1."""
    generator = torch.Generator().manual_seed(seed)
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Embedding):
            part.weight.normal_(0.0, deviation, generator=generator)
        if isinstance(part, nn.Embedding) and part.padding_idx is not None:
            part.weight[part.padding_idx].zero_()
        if isinstance(part, nn.LayerNorm):
            part.weight.fill_(1.0)
        if getattr(part, "bias", None) is not None:
            part.bias.zero_()  # type: ignore[operator]


def require_like_layers(model: ElasticModel) -> None:
    """Raise InputError unless all layers of the model's family are built alike (post-norm encoders)."""
    if not isinstance(model.encoder.family, PostNormFamily):
        raise InputError(f"layers of {model.encoder.family.name} encoders differ by their place and cannot be left out")
