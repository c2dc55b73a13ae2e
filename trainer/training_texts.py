"""Tokenised training texts, and which of them form the batch of a step."""

import json
import tempfile
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from elasticlm.model.batching import batches_by_length
from elasticlm.model.elastic_model import ElasticModel, Kind
from elasticlm.model.tokenizing import tokenize_alone
from elasticlm.trainer.processes import Processes

TOKENIZE_AT_ONCE = 1024
BUCKETS = 32  # batches that are sorted by length together


class TokenizedTexts:
    """The token ids of many texts in one flat array, on disk; padding only within a batch.

    Two bytes a token (four for very large vocabularies) in an unnamed temporary file that is memory-mapped: the system
    holds what it has room for. In memory are eight bytes a text, sixteen a pair.

    Args:
        firsts: IntArray [texts], how many tokens of a pair have token type 0. None for texts that are not pairs, and
            for families without token types: inputs() then returns no ``token_type_ids``.
    """

    def __init__(self, token_ids: np.ndarray, ends: np.ndarray, pad_id: int, firsts: np.ndarray | None = None) -> None:
        self.token_ids, self._ends, self.pad_id, self._firsts = token_ids, ends, pad_id, firsts
        self.lengths = np.diff(ends, prepend=0)

    @classmethod
    def of(
        cls,
        model: ElasticModel,
        texts: Iterable[str],
        kind: Kind,
        max_tokens: int | None = None,
    ) -> "TokenizedTexts":
        """Tokenise ``texts`` as the model does for queries or passages, cut to ``max_tokens`` where given."""

        def rows() -> Iterator[np.ndarray]:
            waiting = iter(texts)
            while some := list(islice(waiting, TOKENIZE_AT_ONCE)):
                inputs = model.tokenize(some, kind)
                counts = inputs["attention_mask"].sum(1).tolist()
                for ids, length in zip(inputs["input_ids"].numpy(), counts, strict=True):
                    yield _cut(ids[:length], max_tokens)

        return cls(*_written(model, rows()), model.tokenizer.pad_token_id)

    @classmethod
    def to_join(cls, model: ElasticModel, texts: Iterable[str], max_tokens: int) -> "TokenizedTexts":
        """Tokenise texts without special tokens and prompts, to be joined to pairs.

        Args:
            max_tokens: length limit of a text, the special tokens of a single text included.
        """

        def rows() -> Iterator[np.ndarray]:
            waiting = iter(texts)
            while some := list(islice(waiting, TOKENIZE_AT_ONCE)):
                alone = tokenize_alone(model.tokenizer, some, max_tokens, model.config.max_tokens.pair)[0]
                yield from map(np.array, alone)

        return cls(*_written(model, rows()), model.tokenizer.pad_token_id)

    @classmethod
    def of_pairs(cls, model: ElasticModel, pairs: Iterable[tuple[str, str | None]]) -> "TokenizedTexts":
        """Tokenise pairs of texts (all of them, or none, with a second text) as the model does: without prompts."""
        firsts = array("q") if model.uses_token_types else None

        def rows() -> Iterator[np.ndarray]:
            waiting = iter(pairs)
            while some := list(islice(waiting, TOKENIZE_AT_ONCE)):
                seconds = [second for _, second in some if second is not None]
                inputs = model.tokenize_pairs([first for first, _ in some], seconds or None)
                if firsts is not None:
                    # The tokenizer's own types, so that training sees what is served, whatever types its pairs have.
                    firsts.extend((inputs["attention_mask"] * (inputs["token_type_ids"] == 0)).sum(1).tolist())
                counts = inputs["attention_mask"].sum(1).tolist()
                for ids, count in zip(inputs["input_ids"].numpy(), counts, strict=True):
                    yield ids[:count]

        written = _written(model, rows())
        return cls(*written, model.tokenizer.pad_token_id, None if firsts is None else np.array(firsts))

    def part(self, start: int, stop: int) -> "TokenizedTexts":
        """The texts from ``start`` to before ``stop``, on the same file."""
        ends = self._ends[start:stop]
        first = self._ends[start - 1] if start else 0
        firsts = None if self._firsts is None else self._firsts[start:stop]
        return TokenizedTexts(self.token_ids[first : ends[-1]], ends - first, self.pad_id, firsts)

    def content(self, start: int, stop: int) -> bytes:
        """The lengths and token ids of these texts, which tell them from others."""
        texts = self.part(start, stop)
        return texts.lengths.astype(np.int64).tobytes() + texts.token_ids.astype(np.int32).tobytes()

    def __len__(self) -> int:
        return len(self._ends)

    def ids(self, row: int) -> np.ndarray:
        """The token ids of one text."""
        return self.token_ids[self._ends[row] - self.lengths[row] : self._ends[row]]

    def inputs(self, rows: np.ndarray) -> dict[str, Tensor]:
        """Return ``input_ids`` and ``attention_mask`` [rows, tokens], padded to the longest of these rows.

        For pairs of a family that uses token types, ``token_type_ids`` too.
        """
        lengths = self.lengths[rows]
        input_ids = np.full((len(rows), lengths.max()), self.pad_id, dtype=np.int64)
        for ids, end, length in zip(input_ids, self._ends[rows], lengths, strict=True):
            ids[:length] = self.token_ids[end - length : end]
        place = np.arange(lengths.max())
        inputs = {"input_ids": input_ids, "attention_mask": place < lengths[:, None]}
        if self._firsts is not None:
            inputs["token_type_ids"] = (place >= self._firsts[rows][:, None]) & inputs["attention_mask"]
        return {name: torch.from_numpy(array).long() for name, array in inputs.items()}


@dataclass(frozen=True)
class UntokenizedPassages:
    """Passages that are tokenised a part at a time, so that neither they nor their tokens need to fit in memory."""

    model: ElasticModel
    passages: Sequence[str]

    def __len__(self) -> int:
        return len(self.passages)

    def part(self, start: int, stop: int) -> TokenizedTexts:
        """Tokenise the passages from ``start`` to before ``stop``, as the model does."""
        return TokenizedTexts.of(self.model, self.passages[start:stop], "passage")

    def content(self, start: int, stop: int) -> bytes:
        """These passages; how the model tokenises them is part of its fingerprint."""
        return json.dumps(self.passages[start:stop]).encode()


def joined(
    model: ElasticModel, firsts: TokenizedTexts, seconds: TokenizedTexts, rows: np.ndarray, others: np.ndarray
) -> dict[str, Tensor]:
    """Return the inputs of pairs whose texts were tokenised by TokenizedTexts.to_join(), as the model tokenises pairs.

    Args:
        rows, others: IntArray [pairs], rows of ``firsts`` and of ``seconds``.
    """
    pairs = ((firsts.ids(row).tolist(), seconds.ids(other).tolist()) for row, other in zip(rows, others, strict=True))
    types = model.uses_token_types
    return model.pair_template.inputs(pairs, model.config.max_tokens.pair, types=types)[0]


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


def _written(model: ElasticModel, rows: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Write the token ids of each text to a file; return them, memory-mapped, and where each text ends."""
    lengths, dtype = array("q"), np.min_scalar_type(model.config.vocab_size)
    with tempfile.TemporaryFile() as file:
        for row in rows:
            file.write(row.astype(dtype).tobytes())
            lengths.append(len(row))
        file.flush()
        token_ids = np.memmap(file, dtype, mode="r") if sum(lengths) else np.empty(0, dtype)
    return token_ids, np.cumsum(lengths, dtype=np.int64)


def _cut(ids: np.ndarray, max_tokens: int | None) -> np.ndarray:
    """The first tokens and the closing [SEP]."""
    if max_tokens is None or len(ids) <= max_tokens:
        return ids
    return np.append(ids[: max_tokens - 1], ids[-1])


class Counter(Protocol):
    """Counts what is done, such as a progress bar."""

    def update(self, n: int, /) -> object: ...


@torch.no_grad()
def encode(
    model: ElasticModel,
    texts: TokenizedTexts,
    processes: Processes,
    *,
    precision: str | None = None,
    bar: Counter | None = None,
    batch_tokens: int = 8192,
) -> Tensor:
    """Encode texts by the model's largest level, in batches of like lengths.

    Args:
        precision: fp32 or bf16; by default as the processes train.
        bar: counts every text.
        batch_tokens: tokens of a batch, padding counted.

    Returns:
        FloatTensor [texts, dim] on the CPU.
    """
    vectors = torch.empty(len(texts), model.config.vector_size)
    for rows in batches_by_length(texts.lengths, max_tokens=batch_tokens):
        inputs = {name: tensor.to(processes.device) for name, tensor in texts.inputs(rows).items()}
        with processes.encoding(inputs["input_ids"].shape[1], precision):
            found = model.encode(inputs, model.structures.largest)
        vectors[rows] = found.float().cpu()
        if bar is not None:
            bar.update(len(rows))
    return vectors
