"""What a step of training minimises: the base class of all objectives, and what several of them use.

An objective turns rows of its training texts into a batch (with the teacher's targets, computed once and without
gradients), and gives every example's loss at a level. The loop (elasticlm.trainer.loop) does the rest, for all alike.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from elasticlm.model.elastic_model import ElasticModel
from elasticlm.model.structure import Level
from elasticlm.trainer.processes import Processes
from elasticlm.trainer.training_texts import TokenizedTexts

RANKS = 10  # of dev RR@10
GROUP_TOKENS = 1024  # on average, of texts of like length that a CPU encodes at once
NONE = -1  # ends the rows of hard negatives of queries that have fewer than others


class Objective(ABC):
    """A loss over the levels of ``model``, example by example.

    Attributes:
        model: the student; all its levels are trained.
        lengths: IntArray [examples], the tokens of each example, for batches of like lengths.
        chunk_size: examples whose activations are held at once.
        extra: modules that are trained and checkpointed together with the student but are not part of the artifact.
    """

    def __init__(self, model: ElasticModel, lengths: np.ndarray, processes: Processes, chunk_size: int) -> None:
        self.model, self.lengths, self.processes, self.chunk_size = model, lengths, processes, chunk_size
        self.extra: nn.Module = nn.ModuleDict()

    @abstractmethod
    def batches(self, rows: np.ndarray, step: int) -> Iterable[Any]:
        """Split the examples of a step into batches whose losses do not depend on each other; this process's share.

        A batch holds the inputs of its examples and all that the levels share: the teacher's targets, passages.
        """

    @abstractmethod
    def losses(self, batch: Any, level: Level) -> Tensor:
        """Return each example's loss at a level, FloatTensor [examples], with gradients where enabled."""

    def measure(self, batch: Any, level: Level) -> tuple[Tensor, Tensor]:
        """Return each example's loss and, where the objective ranks passages, its RR@10 (else NaN), [examples] both."""
        losses = self.losses(batch, level)
        return losses, torch.full_like(losses, float("nan"))

    def backward(self, batch: Any, level: Level, weight: float) -> Tensor:
        """Add the gradient of ``weight`` times the summed losses at a level; return the sum."""
        total = self.losses(batch, level).sum()
        (weight * total).backward()
        return total.detach()

    def finish(self, batch: Any) -> None:  # noqa: B027  most objectives share nothing that is trained
        """Propagate the gradient that the levels accumulated in their shared inputs; called once per batch."""

    def save(self, folder: Path) -> None:
        """Write what was trained into a folder that exists: by default the student's artifact."""
        self.model.save_pretrained(folder)

    def _chunks(self, rows: np.ndarray) -> list[np.ndarray]:
        """Return this process's share of the rows in chunks of ``chunk_size``."""
        mine = self.processes.mine(rows)
        return [mine[i : i + self.chunk_size] for i in range(0, len(mine), self.chunk_size)]

    def _inputs(self, texts: TokenizedTexts, rows: np.ndarray) -> dict[str, Tensor]:
        return {name: tensor.to(self.processes.device) for name, tensor in texts.inputs(rows).items()}

    def _vectors(self, model: ElasticModel, inputs: Mapping[str, Tensor], level: Level) -> Tensor:
        return self._by_length(lambda part: model(**part, level=level), inputs)

    def _by_length(self, encode: Callable[[Mapping[str, Tensor]], Tensor], inputs: Mapping[str, Tensor]) -> Tensor:
        """Encode texts in groups of like length, so that a CPU computes little for padding.

        Args:
            encode: returns a vector for each text, FloatTensor [texts, dim], or for each token, [texts, tokens, dim].
            inputs: padded on the right.

        Returns:
            What ``encode`` returns for ``inputs``, in fp32; what it returns for padding is not defined.
        """
        tokens, lengths = inputs["input_ids"].shape[1], inputs["attention_mask"].sum(1)
        count = int(lengths.sum()) // GROUP_TOKENS if self.processes.device.type == "cpu" else 0
        if count < 2:
            with self.processes.encoding(tokens):
                return encode(inputs).float()
        groups = lengths.argsort(stable=True).tensor_split(min(count, len(lengths)))
        parts = []
        for rows in groups:
            longest = int(lengths[rows].max())
            with self.processes.encoding(longest):
                part = encode({name: tensor[rows, :longest] for name, tensor in inputs.items()}).float()
            parts.append(part if part.dim() == 2 else F.pad(part, (0, 0, 0, tokens - longest)))
        return torch.cat(parts)[torch.cat(groups).argsort()]


def draw_negatives(negatives: np.ndarray, count: int, seed: int, step: int) -> np.ndarray:
    """Draw a step's hard negatives of each query, without replacement.

    Args:
        negatives: IntArray [queries, candidates]; a row may end with NONE, which is drawn only where a query has fewer
            than ``count``.

    Returns:
        IntArray [queries, count], or all candidates in random order if there are fewer.
    """
    drawn = np.random.default_rng([seed, 2, step]).permuted(negatives, axis=1)
    return np.take_along_axis(drawn, np.argsort(drawn == NONE, axis=1, kind="stable"), axis=1)[:, :count]


def reciprocal_ranks(scores: Tensor, labels: Tensor) -> Tensor:
    """Return 1 / rank of each row's label by score, 0 beyond rank 10.

    Ties and scores that are not numbers count against the label, so that a collapsed model does not look perfect.

    Args:
        scores: FloatTensor [queries, passages].
        labels: LongTensor [queries], columns of ``scores``.

    Returns:
        FloatTensor [queries].
    """
    ranks = (~(scores < scores.gather(1, labels[:, None]))).sum(-1)  # the label itself is one of them
    return torch.where(ranks <= RANKS, 1 / ranks, 0.0)
