"""Engines side by side: what one is called, rounds in which each runs once, and ratios within a round."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from torch import Tensor

from elasticlm.errors import InputError
from elasticlm.model.elastic_model import ElasticModel
from elasticlm.model.structure import Level, level_name
from elasticlm.schedule.profiling import text_of

WHOLE = "teacher"
LONG_MS = 50.0  # a run that fills the caches itself
Run = Callable[[], object]
Inputs = Mapping[str, Tensor]


@dataclass(frozen=True)
class Engine:
    """What runs a level ("50") or the whole teacher ("teacher"), and in which precision."""

    level: str
    name: str
    precision: str = "fp32"

    def __str__(self) -> str:
        return f"{self.level}: {self.name} {self.precision}"


Times = dict[Engine, list[float]]
"""Of one shape: ms of every round; the i-th numbers of all engines are from the same round."""


@dataclass(frozen=True)
class Shape:
    """A batch of ``rows`` sequences of ``tokens``, without padding."""

    rows: int
    tokens: int

    def __str__(self) -> str:
        return f"{self.rows}x{self.tokens}"

    @classmethod
    def parse(cls, text: str) -> "Shape":
        """Read ``"8x128"``; raises InputError.

        >>> Shape.parse("8x128")
        Shape(rows=8, tokens=128)
        """
        rows, _, tokens = text.partition("x")
        if not (rows.isdecimal() and tokens.isdecimal() and int(rows) and int(tokens)):
            raise InputError(f"shape {text!r}: expected ROWSxTOKENS, such as 8x128")
        return cls(int(rows), int(tokens))

    def inputs(self, model: ElasticModel) -> Inputs:
        """A tokenised batch of real words, LongTensors [rows, tokens]; raises InputError above the model's limit."""
        found = dict(model.tokenize([text_of(model, self.tokens)] * self.rows))
        if tuple(found["input_ids"].shape) != (self.rows, self.tokens):
            raise InputError(f"shape {self}: the model cannot make so many tokens, only {found['input_ids'].shape[1]}")
        return found


def time_rounds(
    runs: Mapping[Engine, Run], *, seconds: float, least: int, on_round: Callable[[], object] = lambda: None
) -> Times:
    """Time engines in turns: so many seconds per engine on average, and at least so many rounds.

    A turn is a run that is not timed and then one that is: what an engine takes at work, not on caches that all the
    others have just filled (runs of 50 ms and more are timed at once). Whoever begins moves on by one each round.
    """
    engines = list(runs)
    times: Times = {engine: [] for engine in engines}
    end = time.perf_counter() + seconds * len(engines)
    rounds = 0
    while rounds < least or time.perf_counter() < end:
        first = rounds % len(engines)
        for engine in engines[first:] + engines[:first]:
            if not times[engine] or times[engine][-1] < LONG_MS:
                runs[engine]()
            times[engine].append(timed_ms(runs[engine]))
        rounds += 1
        on_round()
    return times


def timed_ms(run: Run) -> float:
    """Milliseconds of one run."""
    start = time.perf_counter()
    run()
    return (time.perf_counter() - start) * 1000


def ratio(times: Times, ours: Engine, theirs: Engine) -> float | None:
    """Median over rounds of our time in theirs, which the machine's noise leaves alone; None where one is missing.

    >>> a, b = Engine("50", "onnx"), Engine("50", "openvino")
    >>> ratio({a: [1.0, 20.0, 3.0], b: [2.0, 40.0, 2.0]}, a, b)
    0.5
    """
    if ours not in times or theirs not in times:
        return None
    return float(np.median(np.array(times[ours]) / np.array(times[theirs])))


def switching_cost(
    run: Callable[[Level], object], levels: Sequence[Level], *, seconds: float, pairs: int, repeats: int = 5
) -> float:
    """Time of cycling through all levels at every call, in that of staying on each for ``repeats`` calls.

    Blocks of both kinds take turns, the one that begins too; the median over pairs of blocks, as many as fit into the
    seconds and at least ``pairs``.
    """

    def cycle() -> None:
        for _ in range(repeats):
            for level in levels:
                run(level)

    def staying_ms() -> float:
        total = 0.0
        for level in levels:
            run(level)
            total += sum(timed_ms(partial(run, level)) for _ in range(repeats))
        return total

    cycle()
    ratios: list[float] = []
    end = time.perf_counter() + seconds
    while len(ratios) < pairs or time.perf_counter() < end:
        if len(ratios) % 2:
            stayed = staying_ms()
            ratios.append(timed_ms(cycle) / stayed)
        else:
            cycled = timed_ms(cycle)
            ratios.append(cycled / staying_ms())
    return float(np.median(ratios))


def names(levels: Sequence[Level]) -> list[str]:
    """Levels as files write them."""
    return [level_name(level) for level in levels]
