"""Measured quality and service time of every pair of levels in a pipeline of a retriever and a reranker.

The qualities are stored in pairs.json, which ``elasticlm evaluate --matrix`` writes. If ``reranker`` is null, the
retriever runs alone::

    [{"retriever": 50, "reranker": 10, "depth": 20, "quality": 0.61, "measure": "RR@10"}, ...]
"""

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Protocol

from elasticlm.errors import InputError
from elasticlm.files import new_file
from elasticlm.model.structure import Choice, Level, Pair, level_name, parse_level
from elasticlm.schedule.quantiles import SHARES, sum_of_independent

PAIRS_FILE = "pairs.json"
OLD_NAMES = {"denser": "retriever", "ranker": "reranker"}  # of the fields in files of format 1


@dataclass(frozen=True, kw_only=True)
class MeasuredPair:
    """A pair of levels and its quality: the mean of ``measure`` when the retriever's top ``depth`` hits are reranked.

    Raises InputError on values out of range.
    """

    retriever: Level
    reranker: Level | None
    depth: int
    quality: float
    measure: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "retriever", parse_level(self.retriever))
        object.__setattr__(self, "reranker", None if self.reranker is None else parse_level(self.reranker))
        if type(self.depth) is not int or self.depth < 1:
            raise InputError(f"depth {self.depth!r}: expected 1 or more passages")
        if not (isinstance(self.quality, int | float) and math.isfinite(self.quality)):
            raise InputError(f"quality {self.quality!r}: expected a number")

    @property
    def levels(self) -> Choice:
        return self.retriever if self.reranker is None else Pair(self.retriever, self.reranker)


def read_pairs(file: str | Path) -> list[MeasuredPair]:
    """Read pairs.json. Raises InputError that names the file."""
    try:
        entries = json.loads(Path(file).read_text("utf-8"))
        pairs = [MeasuredPair(**{OLD_NAMES.get(key, key): value for key, value in entry.items()}) for entry in entries]
    except OSError:
        raise InputError(f"{file}: no such file; `elasticlm evaluate --matrix` writes one") from None
    except (AttributeError, TypeError, ValueError) as error:
        expected = ", ".join(field.name for field in fields(MeasuredPair))
        raise InputError(f"{file}: expected a list of pairs, each with {expected} ({error})") from None
    if not pairs or len({pair.measure for pair in pairs}) > 1:
        raise InputError(f"{file}: expected one or more pairs of levels, all with the same measure")
    names = [level_name(pair.levels) for pair in pairs]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise InputError(f"{file}: duplicate pair {twice}")
    return pairs


def write_pairs(file: str | Path, pairs: Iterable[MeasuredPair], *, overwrite: bool = True) -> None:
    """Write pairs.json in this order, one pair per line."""
    lines = ",\n ".join(json.dumps(asdict(pair)) for pair in pairs)
    with new_file(file, overwrite=overwrite) as temporary:
        temporary.write_text(f"[{lines}]\n", "utf-8")


def pareto(pairs: Iterable[MeasuredPair], time_ms: Callable[[Choice], float]) -> list[MeasuredPair]:
    """Return the pairs worth running, best and slowest first: those for which no other is as good and as fast."""
    front: list[MeasuredPair] = []
    for pair in sorted(pairs, key=lambda pair: (-pair.quality, time_ms(pair.levels))):
        if not front or time_ms(pair.levels) < time_ms(front[-1].levels):
            front.append(pair)
    return front


class StageTimes(Protocol):
    """Service times of one stage: a LatencyTable, or an object that samples from one."""

    @property
    def tokens(self) -> tuple[int, ...]: ...

    def mean_ms(self, level: Level, rows: float = ..., tokens: float | None = ...) -> float: ...

    def p95_ms(self, level: Level, rows: float = ..., tokens: float | None = ...) -> float: ...

    def quantiles_ms(self, level: Level, rows: float = ..., tokens: float | None = ...) -> list[float]: ...


class PairTable:
    """Service times of a two-stage pipeline; policies use it like a LatencyTable.

        t(pair) = t_retriever(rows, tokens) + rows x search + t_reranker(rows x depth, tokens of a pair)

    ``levels`` contains only the pairs worth running for one short query, best first; the table has times for all pairs.

    Args:
        passage_tokens: length to which the passages of a list are padded; a pair adds the query's tokens.
        max_tokens: length limit of a pair.
        search_ms: time of the index per query.

    >>> from elasticlm.schedule.latency import LatencyTable
    >>> retriever, reranker = (LatencyTable.from_means({50: 4 * ms, 10: ms}) for ms in (1.0, 2.0))
    >>> measured = [(50, 50, 0.7), (10, 50, 0.6), (10, None, 0.4), (50, None, 0.5), (50, 10, 0.4)]
    >>> pairs = [MeasuredPair(retriever=d, reranker=r, depth=8, quality=q, measure="RR@10") for d, r, q in measured]
    >>> table = PairTable(pairs, retriever, reranker, passage_tokens=64, max_tokens=128)
    >>> [(level_name(pair), table.mean_ms(pair)) for pair in table.levels]
    [('50+50', 68.0), ('10+50', 65.0), ('50', 4.0), ('10', 1.0)]
    """

    def __init__(
        self,
        pairs: Sequence[MeasuredPair],
        retriever: StageTimes,
        reranker: StageTimes,
        *,
        passage_tokens: int,
        max_tokens: int,
        search_ms: float = 0.0,
    ) -> None:
        self.pairs = {pair.levels: pair for pair in pairs}
        self.retriever, self.reranker, self.search_ms = retriever, reranker, search_ms
        self.passage_tokens, self.max_tokens = passage_tokens, max_tokens
        self._quantiles: dict[tuple[Choice, float, float | None], list[float]] = {}
        self.levels: tuple[Choice, ...] = tuple(pair.levels for pair in pareto(pairs, self.mean_ms))

    def __getitem__(self, levels: Choice) -> MeasuredPair:
        """Return the pair of these levels. Raises InputError if there is none."""
        if levels not in self.pairs:
            offered = ", ".join(map(level_name, self.pairs))
            raise InputError(f"{level_name(levels)} is not among the pairs of levels {offered}")
        return self.pairs[levels]

    def mean_ms(self, level: Choice, rows: float = 1, tokens: float | None = None) -> float:
        """Return the mean service time in ms of searching and reranking for ``rows`` queries padded to ``tokens``."""
        first, second = self._stages(level, rows, tokens)
        search_ms = self.retriever.mean_ms(*first) + rows * self.search_ms
        return search_ms + (self.reranker.mean_ms(*second) if second else 0.0)

    def p95_ms(self, level: Choice, rows: float = 1, tokens: float | None = None) -> float:
        """Return the 95th percentile of the service time in ms, for stages whose times are independent."""
        first, second = self._stages(level, rows, tokens)
        if second is None:
            return self.retriever.p95_ms(*first) + rows * self.search_ms
        return self.quantiles_ms(level, rows, tokens)[SHARES.index(0.95)]

    def quantiles_ms(self, level: Choice, rows: float = 1, tokens: float | None = None) -> list[float]:
        """Return the quantile function of the service time in ms (see elasticlm.schedule.quantiles)."""
        key = (level, rows, tokens)
        if key not in self._quantiles:
            first, second = self._stages(level, rows, tokens)
            searched = [ms + rows * self.search_ms for ms in self.retriever.quantiles_ms(*first)]
            reranked = self.reranker.quantiles_ms(*second) if second else None
            self._quantiles[key] = sum_of_independent(searched, reranked) if reranked else searched
        return self._quantiles[key]

    def _stages(
        self, level: Choice, rows: float, tokens: float | None
    ) -> tuple[tuple[Level, float, float | None], tuple[Level, float, float] | None]:
        """Return the level, rows and tokens of the retriever, and of the reranker if it runs."""
        pair = self[level]
        first = pair.retriever, rows, tokens
        if pair.reranker is None:
            return first, None
        pair_tokens = min((tokens or self.retriever.tokens[0]) + self.passage_tokens, self.max_tokens)
        return first, (pair.reranker, rows * pair.depth, pair_tokens)
