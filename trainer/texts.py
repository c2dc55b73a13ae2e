"""Tokenised training texts, and which of them form the batch of a step."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from elasticlm.command import progress
from elasticlm.model import ElasticModel
from trainer.processes import Processes

TOKENIZE_AT_ONCE = 1024
BUCKETS = 32  # batches that are sorted by length together


class TokenizedTexts:
    """The token ids of many texts in one flat array: a hundred bytes a query, and padding only within a batch."""

    def __init__(self, token_ids: np.ndarray, ends: np.ndarray, pad_id: int) -> None:
        self._token_ids, self._ends, self._pad_id = token_ids, ends, pad_id
        self.lengths = np.diff(ends, prepend=0)

    @classmethod
    def of(
        cls, model: ElasticModel, texts: Sequence[str], kind: str, max_tokens: int | None = None
    ) -> "TokenizedTexts":
        """Tokenise ``texts`` as the model does for queries or passages, cut to ``max_tokens`` where given."""
        rows: list[np.ndarray] = []
        for start in range(0, len(texts), TOKENIZE_AT_ONCE):
            inputs = model.tokenize(texts[start : start + TOKENIZE_AT_ONCE], kind)
            for ids, length in zip(inputs["input_ids"].numpy(), inputs["attention_mask"].sum(1).tolist(), strict=True):
                rows.append(_cut(ids[:length], max_tokens).astype(np.int32))
        ends = np.cumsum([len(ids) for ids in rows], dtype=np.int64)
        return cls(np.concatenate(rows), ends, model.tokenizer.pad_token_id)

    def __len__(self) -> int:
        return len(self._ends)

    def inputs(self, rows: np.ndarray) -> dict[str, Tensor]:
        """Return ``input_ids`` and ``attention_mask`` [rows, tokens], padded to the longest of these rows."""
        lengths = self.lengths[rows]
        input_ids = np.full((len(rows), lengths.max()), self._pad_id, dtype=np.int64)
        for ids, end, length in zip(input_ids, self._ends[rows], lengths, strict=True):
            ids[:length] = self._token_ids[end - length : end]
        attention_mask = np.arange(lengths.max()) < lengths[:, None]
        return {"input_ids": torch.from_numpy(input_ids), "attention_mask": torch.from_numpy(attention_mask).long()}


class BatchOrder:
    """Which rows form the batch of a step: a pure function of (seed, step), so that resuming needs no state.

    Every epoch visits the rows in a new random order; neighbours in that order are sorted by length before they are
    cut into batches, and the batches shuffled, so that little is spent on padding. A last, smaller batch is left out.
    """

    def __init__(self, lengths: np.ndarray, batch_size: int, seed: int) -> None:
        self._lengths, self._seed = lengths, seed
        self.batch_size = min(batch_size, len(lengths))
        self.batches_per_epoch = len(lengths) // self.batch_size
        self._epoch, self._batches = -1, np.empty((0, 0), dtype=np.int64)

    def rows(self, step: int) -> np.ndarray:
        """Return the rows [batch_size] of this step's batch."""
        epoch, position = divmod(step, self.batches_per_epoch)
        if epoch != self._epoch:
            self._epoch, self._batches = epoch, self._shuffled(epoch)
        return self._batches[position]

    def _shuffled(self, epoch: int) -> np.ndarray:
        random = np.random.default_rng([self._seed, epoch])
        rows = random.permutation(len(self._lengths))[: self.batches_per_epoch * self.batch_size]
        pool = BUCKETS * self.batch_size
        ordered = np.concatenate([
            part[np.argsort(self._lengths[part], kind="stable")]
            for part in np.split(rows, range(pool, len(rows), pool))
        ])  # fmt: skip
        return random.permutation(ordered.reshape(-1, self.batch_size))


def _cut(ids: np.ndarray, max_tokens: int | None) -> np.ndarray:
    """The first tokens and the closing [SEP]."""
    if max_tokens is None or len(ids) <= max_tokens:
        return ids
    return np.append(ids[: max_tokens - 1], ids[-1])


@torch.no_grad()
def encode(
    model: ElasticModel, texts: TokenizedTexts, processes: Processes, *, desc: str, batch_size: int = 64
) -> Tensor:
    """Encode texts by the model's largest level, in batches of like lengths. Returns FloatTensor [texts, dim], CPU."""
    vectors = torch.empty(len(texts), model.config.hidden_size)
    order = np.argsort(-texts.lengths, kind="stable")
    bar = progress(total=len(texts), desc=desc, unit="text")
    for start in range(0, len(texts), batch_size):
        rows = order[start : start + batch_size]
        inputs = {name: tensor.to(processes.device) for name, tensor in texts.inputs(rows).items()}
        with processes.encoding(inputs["input_ids"].shape[1]):
            found = model(**inputs, level=model.structures.largest)
        vectors[rows] = found.float().cpu()
        bar.update(len(rows))
    bar.close()
    return vectors
