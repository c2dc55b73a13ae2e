"""Dropout masks of the training loop: a function of the seed and the step, and drawn alike in a second pass."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

from elasticlm.model.dropout import NO_DROPOUT, Dropout
from elasticlm.model.elastic_model import ElasticModel
from elasticlm.trainer.loop_options import TEACHERS_DROPOUT


def dropout_of(setting: str, model: ElasticModel) -> Dropout:
    """Return the rates that ``--dropout`` means for a model: see LoopOptions.dropout."""
    return model.encoder.family.dropout(model.config, None if setting == TEACHERS_DROPOUT else float(setting))


@contextmanager
def dropping(model: ElasticModel, dropout: Dropout, seed: int, step: int, rank: int) -> Iterator[None]:
    """Let a model drop values within the block, by masks that depend on these numbers alone.

    PyTorch's generators are then as they were before. Without dropout, nothing is done.

    Args:
        rank: of the process; each has masks of its own, since it has examples of its own.
    """
    if dropout == NO_DROPOUT:
        yield
        return
    with model.dropping(dropout), torch.random.fork_rng(_accelerators()):
        torch.manual_seed(int(np.random.SeedSequence([seed, 7, step, rank]).generate_state(1)[0]))
        yield


@dataclass(frozen=True)
class RandomState:
    """The states of PyTorch's generators on the CPU and, where one is used, on the CUDA device."""

    cpu: Tensor
    cuda: Tensor | None

    @classmethod
    def now(cls) -> Self:
        return cls(torch.get_rng_state(), torch.cuda.get_rng_state() if _accelerators() else None)

    @contextmanager
    def again(self) -> Iterator[None]:
        """Within the block, draw what was drawn after now(); afterwards the generators go on as if it had not been."""
        with torch.random.fork_rng(_accelerators()):
            torch.set_rng_state(self.cpu)
            if self.cuda is not None:
                torch.cuda.set_rng_state(self.cuda)
            yield


def _accelerators() -> list[int]:
    """The CUDA device that this process uses, if it uses one."""
    return [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
