"""Vectors of a batch that is too large to hold every activation of: cached representations (GradCache).

A loss over a whole batch (in-batch negatives) needs all vectors at once, but not all activations. Vectors are computed
chunk by chunk without gradients and become a leaf; the loss's backward leaves its gradient there; then every chunk is
run again with gradients and takes its rows of it. A batch that is one chunk keeps its graph and is run once. The second
pass of a chunk draws the dropout masks of the first, or its gradient would be that of another function.

Gao et al. 2021, "Scaling deep contrastive learning batch size under memory limited setup".
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from elasticlm.trainer.dropout_masks import RandomState
from elasticlm.trainer.processes import Processes


class Representations:
    """The vectors of ``rows``, and the way back into the encoder.

    Args:
        encode: rows -> vectors [rows, dim], with gradients where they are enabled.
        rows: the texts to encode, those of this process unless ``processes`` shares them out.
        chunk_size: rows encoded at once.
        processes: where given, ``rows`` are the whole batch's: each process encodes its share and all hold all vectors.
    """

    def __init__(
        self,
        encode: Callable[[np.ndarray], Tensor],
        rows: np.ndarray,
        chunk_size: int,
        processes: Processes | None = None,
    ) -> None:
        self._encode, self._processes = encode, processes
        positions = np.arange(len(rows))
        self._mine = positions if processes is None else processes.mine(positions)
        self._chunks = [rows[self._mine[i : i + chunk_size]] for i in range(0, len(self._mine), chunk_size)]
        self._graph: Tensor | None = None
        if len(self._chunks) == 1:
            self._graph = encode(self._chunks[0])
            own = self._graph.detach()
        else:
            self._states: list[RandomState] = []
            with torch.no_grad():
                own = torch.cat([self._first_pass(chunk) for chunk in self._chunks])
        if processes is not None and processes.count > 1:
            everyones = own.new_zeros(len(rows), own.shape[1])
            everyones[self._mine] = own
            own = processes.sum(everyones)
        self.vectors = own.clone().requires_grad_()

    def backward(self) -> None:
        """Carry the gradient gathered in ``vectors`` on into the encoder's parameters."""
        gradient = self.vectors.grad
        assert gradient is not None, "no loss was run backward"
        if self._processes is not None:
            gradient = self._processes.sum(gradient)
        gradient = gradient[self._mine]
        if self._graph is not None:
            self._graph.backward(gradient)
            return
        start = 0
        for chunk, state in zip(self._chunks, self._states, strict=True):
            with state.again():
                vectors = self._encode(chunk)
            vectors.backward(gradient[start : start + len(chunk)])
            start += len(chunk)

    def _first_pass(self, chunk: np.ndarray) -> Tensor:
        self._states.append(RandomState.now())
        return self._encode(chunk)
