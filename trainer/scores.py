"""Expressive scores: how sensitive the teacher's loss is to each head and each neuron (ElasticLM, section 4.1)."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from elasticlm.model.elastic_model import ElasticModel
from elasticlm.model.encoder import ElasticEncoder
from elasticlm.model.structure import Structure

Batch = TypeVar("Batch")


@dataclass(frozen=True)
class Scores:
    """Expressive scores I >= 0, FloatArray [layers, heads] and [layers, neurons]."""

    heads: np.ndarray
    neurons: np.ndarray

    def normalized(self) -> "Scores":
        """Divided by their L2 norm in each layer, which makes layers comparable (Molchanov et al. 2017)."""
        return Scores(_unit_rows(self.heads), _unit_rows(self.neurons))


@dataclass(frozen=True)
class Gates:
    """Factors on every head's output (before the output projection) and every neuron (after its activation).

    heads: one Tensor [batch, heads] per layer; neurons: one Tensor [batch, neurons] per layer. With all values 1 the
    model computes what it computes without gates.
    """

    heads: list[Tensor]
    neurons: list[Tensor]

    @classmethod
    def ones(cls, encoder: ElasticEncoder, whole: Structure, batch: int) -> "Gates":
        """Gates of value 1 that take a gradient, for an encoder with all of its units."""
        like = encoder.words.weight

        def gate(units: int) -> Tensor:
            return torch.ones(batch, units, dtype=like.dtype, device=like.device, requires_grad=True)

        return cls([gate(heads) for heads in whole.heads], [gate(neurons) for neurons in whole.neurons])


@contextmanager
def gated(encoder: ElasticEncoder, gates: Gates) -> Iterator[None]:
    """Multiply the gates into what the units of an encoder give, within the block."""

    def gate_output(gate: Tensor):  # [batch, units], onto [batch, tokens, units * width]
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            width = output.shape[-1] // gate.shape[-1]
            return output * gate.repeat_interleave(width, dim=1)[:, None, :]

        return hook

    handles = []
    layers: Any = encoder.layers
    for layer, heads, neurons in zip(layers, gates.heads, gates.neurons, strict=True):
        handles.append(layer.attention.units.register_forward_hook(gate_output(heads)))
        handles.append(layer.feed_forward.units.register_forward_hook(gate_output(neurons)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def expressive_scores(
    teacher: ElasticModel, batches: Iterable[tuple[int, Batch]], losses: Callable[[Batch], Tensor]
) -> Scores:
    """I = the mean over examples i of |d l_i / d gate_i|, l_i the example's own loss term (ElasticLM, equation 5).

    Every example has gates of its own, so one backward pass through a batch's sum gives each example's own gradient.

    Args:
        teacher: the model with all of its units that runs inside ``losses``; its weights do not change.
        batches: the number of examples of each batch, and the batch.
        losses: batch -> l, FloatTensor [examples], where l_i depends on no other example's gates.
    """
    whole = teacher.config.whole
    heads = np.zeros((whole.layers, whole.heads[0]))
    neurons = np.zeros((whole.layers, whole.neurons[0]))
    examples = 0
    teacher.requires_grad_(False)
    for size, batch in batches:
        gates = Gates.ones(teacher.encoder, whole, size)
        with gated(teacher.encoder, gates):
            total = losses(batch).sum()
        gradients = torch.autograd.grad(total, gates.heads + gates.neurons)
        magnitudes = [gradient.abs().sum(0).double().cpu().numpy() for gradient in gradients]
        heads += np.stack(magnitudes[: len(gates.heads)])
        neurons += np.stack(magnitudes[len(gates.heads) :])
        examples += size
    return Scores(heads / examples, neurons / examples)


def _unit_rows(scores: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(scores, axis=1, keepdims=True)
    return np.divide(scores, norms, out=np.zeros_like(scores), where=norms > 0)
