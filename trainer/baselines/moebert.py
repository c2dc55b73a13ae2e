"""MoEBERT: experts in place of feed-forward networks (Zuo et al. 2022, "MoEBERT: from BERT to Mixture-of-Experts via
Importance-Guided Adaptation").

A fine-tuned teacher's feed-forward network becomes several experts. The most important neurons are in all of them, the
others are dealt out; every word is routed to one expert by a fixed random hash, so that a token costs one expert. The
experts are trained by the labels, the teacher's logits and the hidden states of its layers.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from elasticlm.errors import InputError
from elasticlm.model.artifact import write_weights
from elasticlm.model.elastic_model import ElasticModel
from elasticlm.model.prefix_layers import FeedForward
from elasticlm.model.structure import WHOLE, ElasticStructure, Level, Structure
from elasticlm.trainer.baselines.state_matching import StateMatching, TaughtBatch, token_losses
from elasticlm.trainer.evaluation import classification
from elasticlm.trainer.objectives.fine_tuning import FineTuning

EXPERTS = 4
SHARED = 2 / 3  # of an expert's neurons: those that are the most important (512 of 768)
DISTILLATION_WEIGHT = 5.0  # lambda_distill, as the authors set it for MNLI
WEIGHTS_FILE = "moebert.safetensors"


class Routes:
    """Which expert each word of the vocabulary goes to, and those of the batch that runs."""

    def __init__(self, words: int, experts: int, seed: int) -> None:
        self.of_words = torch.from_numpy(np.random.default_rng(seed).integers(0, experts, words))
        self.of_tokens: Tensor | None = None  # [batch, tokens]

    def note(self, encoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Route the words that the encoder is about to run on; a forward pre-hook."""
        ids = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
        self.of_tokens = self.of_words.to(ids.device)[ids]


class Experts(nn.Module):
    """A feed-forward network for each route; a token runs through that of its word."""

    def __init__(self, experts: list[FeedForward], routes: Routes) -> None:
        super().__init__()
        self.experts, self._routes = nn.ModuleList(experts), routes

    def forward(self, x_btd: Tensor, neurons: int, *, dropout: float = 0.0) -> Tensor:
        """Return [batch, tokens, dim]; ``neurons`` is the width of an expert, ``dropout`` as in FeedForward."""
        routed = self._routes.of_tokens
        assert routed is not None, "the encoder routes the words before its layers run"
        y = torch.empty_like(x_btd)
        for number, expert in enumerate(self.experts):
            mine = routed == number
            y[mine] = expert(x_btd[mine], neurons, dropout=dropout).to(y.dtype)
        return y


class MoeBert(StateMatching):
    """Train the experts by labels, by the teacher's logits (both ways) and by the hidden states of its layers.

    Args:
        task: the task's objective; its model has level 100 with weights of its own, units in order of importance.
        teacher: a fine-tuned model of the same width and depth.
        level: share of the prunable parameters that a token runs through, in percent.
        experts: of each layer.
        measured: data specs and splits that save() measures.
    """

    def __init__(
        self, task: FineTuning, teacher: ElasticModel, *, level: Level, experts: int, seed: int,
        measured: Sequence[tuple[str, str]] = (),
    ) -> None:  # fmt: skip
        model = with_experts(task.model, level, experts, seed)
        super().__init__(task, model, teacher)
        self.measured = measured

    def losses(self, batch: TaughtBatch, level: Level) -> Tensor:
        mask = batch.of_task.inputs["attention_mask"]
        outputs, hidden = self.run(self.model, batch.of_task.inputs, level)
        apart = torch.stack([token_losses(*pair, mask) for pair in zip(hidden, batch.hidden, strict=True)]).mean(0)
        matched = symmetric_losses(outputs, batch.outputs) + apart
        return self.task.task_losses(outputs, batch.of_task) + DISTILLATION_WEIGHT * matched

    def save(self, folder: Path) -> None:
        """Write the weights, and SPLIT.json for what is to be measured: an artifact has no experts."""
        write_weights(folder, self.model.state_dict(), WEIGHTS_FILE)
        for spec, split in self.measured:
            found = classification.evaluate(self.model, self.teacher, spec, split, self.model.levels)
            found.write(folder / f"{split}.json", overwrite=True)


def with_experts(model: ElasticModel, level: Level, experts: int, seed: int) -> ElasticModel:
    """Return a model whose feed-forward networks are experts, at this one level.

    At 50%, an expert has a quarter of the neurons and all heads stay, as in the paper; at other levels both shrink or
    grow in proportion.

    Raises InputError where the model has no trained level 100.
    """
    if WHOLE not in model.trained_levels:
        raise InputError("moebert needs a model with a trained level 100: elasticlm prune --top shared")
    config, scale = model.config, min(1.0, level / 50)
    heads = max(1, round(scale * config.num_attention_heads))
    width = max(1, round(0.25 * level / 50 * config.intermediate_size))
    whole = model.cut(ElasticStructure({WHOLE: config.whole}))
    count = config.num_hidden_layers
    found = model.cut(ElasticStructure({level: Structure((heads,) * count, (width,) * count)}))
    routes = Routes(config.vocab_size, experts, seed)
    source: Any
    for layer, source in zip(found.encoder.layers, whole.encoder.layers, strict=True):
        parts = [_expert(source.feed_forward, neurons) for neurons in dealt(config.intermediate_size, width, experts)]
        layer.feed_forward = Experts(parts, routes)
    found.encoder.register_forward_pre_hook(routes.note, with_kwargs=True)
    return found


def dealt(neurons: int, width: int, experts: int) -> list[list[int]]:
    """Return the neurons of each expert, out of so many in order of importance: the first in all, the others in turn.

    >>> dealt(12, 4, 3)
    [[0, 1, 2, 3], [0, 1, 2, 4], [0, 1, 2, 5]]
    """
    shared = round(SHARED * width)
    return [[*range(shared), *((shared + number + experts * i) % neurons for i in range(width - shared))]
            for number in range(experts)]  # fmt: skip


def symmetric_losses(outputs: Tensor, teacher: Tensor) -> Tensor:
    """Mean of KL(teacher || student) and KL(student || teacher), or the squared error of a single output: [texts]."""
    if outputs.shape[-1] == 1:
        return ((outputs - teacher) ** 2).squeeze(-1)
    ours, theirs = outputs.log_softmax(-1), teacher.log_softmax(-1)
    both = [F.kl_div(first, second, reduction="none", log_target=True).sum(-1)
            for first, second in ((ours, theirs), (theirs, ours))]  # fmt: skip
    return torch.stack(both).mean(0)


def _expert(source: FeedForward, neurons: list[int]) -> FeedForward:
    """A feed-forward network with these neurons of another."""
    rows = torch.tensor(neurons)
    expert = FeedForward(source.down.out_features, len(neurons), "gelu")
    expert.activation = source.activation
    for name, weight in (("up.weight", source.up.weight[rows]), ("up.bias", source.up.bias[rows]),
                         ("down.weight", source.down.weight[:, rows]), ("down.bias", source.down.bias)):  # fmt: skip
        expert.get_parameter(name).data = weight.detach().clone()
    return expert
