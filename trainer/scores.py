"""Expressive scores: how sensitive the teacher's loss is to each head and each neuron (ElasticLM, section 4.1)."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from elasticlm.model.families.base import GatePoints

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
    def ones(cls, model: PreTrainedModel, batch: int) -> "Gates":
        """Gates of value 1 that take a gradient."""
        config = model.config
        like: dict[str, Any] = {"dtype": model.dtype, "device": model.device, "requires_grad": True}
        layers = range(config.num_hidden_layers)
        return cls(
            [torch.ones(batch, config.num_attention_heads, **like) for _ in layers],
            [torch.ones(batch, config.intermediate_size, **like) for _ in layers],
        )


@contextmanager
def gated(points: Sequence[GatePoints], gates: Gates) -> Iterator[None]:
    """Multiply the gates into a Hugging Face model within the block.

    Args:
        points: where they go, for every layer (see EncoderFamily.gate_points).
    """

    def gate_input(gate: Tensor):  # [batch, units], onto [batch, tokens, units * width]
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            width = inputs[0].shape[-1] // gate.shape[-1]
            return (inputs[0] * gate.repeat_interleave(width, dim=1)[:, None, :],)

        return hook

    handles = []
    for point, heads, neurons in zip(points, gates.heads, gates.neurons, strict=True):
        handles.append(point.heads.register_forward_pre_hook(gate_input(heads)))
        handles.append(point.neurons.register_forward_pre_hook(gate_input(neurons)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def expressive_scores(
    model: PreTrainedModel,
    points: Sequence[GatePoints],
    batches: Iterable[tuple[int, Batch]],
    losses: Callable[[Batch], Tensor],
) -> Scores:
    """I = the mean over examples i of |d l_i / d gate_i|, l_i the example's own loss term (ElasticLM, equation 5).

    Every example has gates of its own, so one backward pass through a batch's sum gives each example's own gradient.

    Args:
        model: the Hugging Face encoder that runs inside ``losses``; its weights do not change.
        points: its gate points, see EncoderFamily.gate_points.
        batches: the number of examples of each batch, and the batch.
        losses: batch -> l, FloatTensor [examples], where l_i depends on no other example's gates.
    """
    config = model.config
    heads = np.zeros((config.num_hidden_layers, config.num_attention_heads))
    neurons = np.zeros((config.num_hidden_layers, config.intermediate_size))
    examples = 0
    model.requires_grad_(False)
    for size, batch in batches:
        gates = Gates.ones(model, size)
        with gated(points, gates):
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
