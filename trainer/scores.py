"""Expressive scores: how much the teacher's loss feels each head and each neuron (ElasticLM, section 3.1)."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from transformers import BertModel

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

    heads: a Tensor [batch, heads] a layer; neurons: a Tensor [batch, neurons] a layer. All 1 leaves BERT as it is.
    """

    heads: list[Tensor]
    neurons: list[Tensor]

    @classmethod
    def ones(cls, bert: BertModel, batch: int) -> "Gates":
        config = bert.config
        layers = range(config.num_hidden_layers)

        def gates(units: int) -> list[Tensor]:
            return [torch.ones(batch, units, dtype=bert.dtype, device=bert.device, requires_grad=True) for _ in layers]

        return cls(gates(config.num_attention_heads), gates(config.intermediate_size))


@contextmanager
def gated(bert: BertModel, gates: Gates) -> Iterator[None]:
    """Multiply the gates into a Hugging Face BERT within the block."""
    size = bert.config.hidden_size // bert.config.num_attention_heads

    def hook(gate: Tensor, width: int):
        return lambda linear, inputs: (inputs[0] * gate.repeat_interleave(width, dim=1)[:, None, :],)

    handles = []
    for layer, heads, neurons in zip(bert.encoder.layer, gates.heads, gates.neurons, strict=True):
        handles.append(layer.attention.output.dense.register_forward_pre_hook(hook(heads, size)))
        handles.append(layer.output.dense.register_forward_pre_hook(hook(neurons, 1)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def expressive_scores(
    bert: BertModel, batches: Iterable[tuple[int, Batch]], losses: Callable[[Batch], Tensor]
) -> Scores:
    """I = the mean over examples i of |d l_i / d gate_i|, l_i the example's own loss term.

    Every example has gates of its own, so one backward through a batch's sum gives each example's own gradient.

    Args:
        bert: runs inside ``losses``; its weights stay as they are.
        batches: the number of examples of each batch, and the batch.
        losses: batch -> l, FloatTensor [examples], where l_i depends on no other example's gates.
    """
    config = bert.config
    heads = np.zeros((config.num_hidden_layers, config.num_attention_heads))
    neurons = np.zeros((config.num_hidden_layers, config.intermediate_size))
    examples = 0
    bert.requires_grad_(False)
    for size, batch in batches:
        gates = Gates.ones(bert, size)
        with gated(bert, gates):
            total = losses(batch).sum()
        gradients = torch.autograd.grad(total, gates.heads + gates.neurons)
        felt = [gradient.abs().sum(0).double().cpu().numpy() for gradient in gradients]
        heads += np.stack(felt[: len(gates.heads)])
        neurons += np.stack(felt[len(gates.heads) :])
        examples += size
    return Scores(heads / examples, neurons / examples)


def _unit_rows(scores: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(scores, axis=1, keepdims=True)
    return np.divide(scores, norms, out=np.zeros_like(scores), where=norms > 0)
