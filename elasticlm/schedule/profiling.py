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
LONG_CELL = 10
"""A cell that has taken this many times the time meant for it is done, however few runs that were."""
MOST_TOKENS = 16_384
"""Batches of more tokens are not run: their time is taken to grow in proportion to the rows."""


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
        seconds, min_runs: a cell is timed until both are reached, but for LONG_CELL * seconds at most.
        on_cell: called after each cell, for progress.
    """
    levels = tuple(levels or model.levels)
    limit = model.longest
    lengths = default_lengths(model) if tokens is None else [length for length in tokens if length <= limit] or [limit]
    cells: list[Cell] = []
    with _threads(threads):
        for count, length in itertools.product(rows, lengths):
            fewer = max((n for n in rows if n * length <= MOST_TOKENS), default=min(rows))
            if count > fewer:
                cells += [_scaled(cell, count) for cell in cells if (cell.rows, cell.tokens) == (fewer, length)]
            else:
                times = _times(model, batch_of(model, count, length), levels, seconds, min_runs)
                cells += [_cell(level, count, length, times[level]) for level in levels]
            for _ in levels:
                on_cell()
    setup = Setup(threads=threads, backend=model.backend.name, precision=model.backend.precision,
                  device=model.backend.device)  # fmt: skip
    notes = machine_notes(machine(("torch", "transformers")))
    return LatencyTable(cells, setup, notes)


def _times(
    model: ElasticModel, batch: tuple[list[str], list[str] | None], levels: Sequence[Level], seconds: float, runs: int
) -> dict[Level, list[float]]:
    """Return the times of each level on a batch, in ms."""

    def timed(level: Level) -> float:
        start = time.perf_counter()
        _answer(model, *batch, level)
        return (time.perf_counter() - start) * 1000

    most = LONG_CELL * seconds * 1000
    first = {level: timed(level) for level in levels}  # a warm-up, unless it takes all of the time
    times = {level: [took] if took > most > 0 else [] for level, took in first.items()}

    def is_done(of_level: list[float]) -> bool:
        return (len(of_level) >= runs and sum(of_level) >= seconds * 1000) or sum(of_level) > most > 0

    while waiting := [level for level in levels if not is_done(times[level])]:
        for level in waiting:
            times[level].append(timed(level))
    return times


def _scaled(cell: Cell, rows: int) -> Cell:
    """A cell of more rows, in proportion; 0 runs say that it was not measured."""
    factor = rows / cell.rows
    p99_ms = None if cell.p99_ms is None else cell.p99_ms * factor
    return Cell(level=cell.level, rows=rows, tokens=cell.tokens, mean_ms=cell.mean_ms * factor,
                p50_ms=cell.p50_ms * factor, p95_ms=cell.p95_ms * factor, p99_ms=p99_ms, runs=0)  # fmt: skip


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
