"""Measure a latency table: time every level on batches of given rows and tokens, with the code that serves requests."""

import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch

from elasticlm.machine import machine
from elasticlm.model.elastic_model import ElasticModel
from elasticlm.model.structure import Level
from elasticlm.schedule.latency import ROWS, TOKENS, Cell, LatencyTable, Setup, machine_notes

P99_RUNS = 1_000  # with fewer runs there is no 99th percentile


def measure(
    model: ElasticModel,
    *,
    levels: Sequence[Level] | None = None,
    rows: Sequence[int] = ROWS,
    tokens: Sequence[int] | None = None,
    threads: int = 1,
    seconds: float = 2.0,
    min_runs: int = 20,
    on_cell: Callable[[], None] = lambda: None,
) -> LatencyTable:
    """Measure the service time of every level from parsed request to response object (tokenise, forward, convert).

    Levels alternate on the same batch, so that noise on the machine affects all of them equally.

    Args:
        levels: levels to measure; None for all.
        rows, tokens: the grid; lengths above the model's limit are left out. None: see ``default_lengths``.
        threads: size of PyTorch's intra-op pool.
        seconds, min_runs: a cell is timed until both are reached.
        on_cell: called after each cell, for progress.
    """
    levels = tuple(levels or model.levels)
    limit = model.longest
    lengths = default_lengths(model) if tokens is None else [length for length in tokens if length <= limit] or [limit]
    cells = []
    with _threads(threads):
        for count, length in itertools.product(rows, lengths):
            batch = batch_of(model, count, length)
            times: dict[Level, list[float]] = {level: [] for level in levels}
            for level in levels:
                _answer(model, *batch, level)  # warm-up
            while waiting := [k for k in levels if len(times[k]) < min_runs or sum(times[k]) < seconds * 1000]:
                for level in waiting:
                    start = time.perf_counter()
                    _answer(model, *batch, level)
                    times[level].append((time.perf_counter() - start) * 1000)
            for level in levels:
                cells.append(_cell(level, count, length, times[level]))
                on_cell()
    setup = Setup(threads=threads, backend=model.backend.name, precision=model.backend.precision,
                  device=model.backend.device)  # fmt: skip
    notes = machine_notes(machine(("torch", "transformers")))
    return LatencyTable(cells, setup, notes)


def default_lengths(model: ElasticModel) -> list[int]:
    """Return the lengths to measure: those of TOKENS below the model's limit, and the limit itself."""
    limit = model.longest
    return [*(length for length in TOKENS if length < limit), limit]


def _answer(model: ElasticModel, texts: list[str], seconds: list[str] | None, level: Level) -> list:
    """Do the work of the server between a parsed request and the response object."""
    inputs = model.tokenize(texts) if seconds is None else model.tokenize_pairs(texts, seconds)
    return model.encode(inputs, level).tolist()


def batch_of(model: ElasticModel, rows: int, tokens: int) -> tuple[list[str], list[str] | None]:
    """Return texts, or pairs of a short text (an eighth of the tokens) and a long one, that form rows x tokens.

    Retrievers get texts. Rerankers and classifiers get pairs, because their requests are tokenised as pairs.

    If there are several rows, the last one is one token shorter, because real batches contain padding and runtimes may
    be faster without it.
    """
    padded = rows > 1
    if model.config.task == "embed":
        return [text_of(model, tokens)] * (rows - padded) + [text_of(model, tokens - 1)] * padded, None
    template, limits = model.pair_template, model.config.max_tokens
    both = tokens - template.longest(0, 0)  # each text counts the special tokens of a single one
    query = max(template.single + 1, tokens // 8, both - limits.passage if model.config.task == "score" else 0)
    longest = both - query
    passages = [text_of(model, longest)] * (rows - padded) + [text_of(model, longest - 1)] * padded
    return [text_of(model, query)] * rows, passages


def text_of(model: ElasticModel, tokens: int) -> str:
    """Return a text of words from the model's vocabulary with exactly ``tokens`` tokens, including special tokens."""
    tokenizer = model.tokenizer
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda entry: entry[1])
    texts = (tokenizer.convert_tokens_to_string([token]).strip() for token, _ in vocabulary[:8000:7])
    whole = [text for text in texts if text.isalpha() and text.islower()
             and len(tokenizer.tokenize(f"{text} {text}")) == 2] or [tokenizer.unk_token]  # fmt: skip
    overhead = model.tokenize([""])["input_ids"].shape[1]
    return " ".join(itertools.islice(itertools.cycle(whole), max(1, tokens - overhead)))


def _cell(level: Level, rows: int, tokens: int, times: list[float]) -> Cell:
    p50, p95, p99 = np.percentile(times, [50, 95, 99]).tolist()
    return Cell(level=level, rows=rows, tokens=tokens, mean_ms=statistics.fmean(times), p50_ms=p50, p95_ms=p95,
                p99_ms=p99 if len(times) >= P99_RUNS else None, runs=len(times))  # fmt: skip


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
