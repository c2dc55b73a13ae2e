"""Service times for the queue simulation: drawn from a latency table, of a pipeline from its two."""

from bisect import bisect_right
from collections.abc import Sequence
from typing import cast

import numpy as np

from elasticlm.model.structure import Choice, Level
from elasticlm.schedule.cascade import PairTable, StageTimes
from elasticlm.schedule.latency import Cell, LatencyTable

SHARES = (0.0, 0.5, 0.95, 0.99, 1.0)  # at which a service time's quantile function is known; linear between them
NORMAL_P99 = 0.41  # (p99 - p95) / (p95 - p50) of a normal distribution, where a cell has no p99


class ServiceTimes:
    """Service times that are drawn from a latency table, with its lookups remembered.

    A service time has the quantiles of the nearest cell, scaled so that its mean is the table's at (rows, tokens).
    Its quantile function is linear between p50, p95, p99; it begins as far below p50 as p95 lies above (at half of p50
    at least) and ends as far above p99 as p95 lies below. ``levels`` None keeps all of the table's.
    """

    def __init__(self, table: LatencyTable, levels: Sequence[Choice] | None = None) -> None:
        kept = [cell for cell in table.cells if levels is None or cell.level in levels]
        self.table = LatencyTable(kept, table.setup, table.notes)
        self._times: dict[tuple, float] = {}
        self._quantiles: dict[tuple, list[float]] = {}

    @property
    def levels(self) -> tuple[Choice, ...]:
        """The levels, largest first."""
        return self.table.levels

    @property
    def tokens(self) -> tuple[int, ...]:
        """Lengths that were measured."""
        return self.table.tokens

    @property
    def most_rows(self) -> int:
        """Rows of the largest batch that was measured."""
        return self.table.rows[-1]

    def check_levels(self, levels: Sequence[Choice]) -> None:
        """Raise InputError unless every one of ``levels`` was measured."""
        self.table.check_levels(cast(Sequence[Level], levels))

    def keeping(self, levels: Sequence[Choice]) -> "ServiceTimes":
        """Return the times of these levels alone."""
        return ServiceTimes(self.table, levels)

    def mean_ms(self, level: Choice, rows: float = 1, tokens: float | None = None) -> float:
        """Mean service time in ms."""
        key = (level, rows, tokens)
        if key not in self._times:
            self._times[key] = self.table.mean_ms(cast(Level, level), rows, tokens)
        return self._times[key]

    def p95_ms(self, level: Choice, rows: float = 1, tokens: float | None = None) -> float:
        """95th percentile of the service time in ms."""
        key = ("p95", level, rows, tokens)
        if key not in self._times:
            self._times[key] = self.table.p95_ms(cast(Level, level), rows, tokens)
        return self._times[key]

    def draw_ms(self, level: Choice, rows: int, tokens: int | None, share: float) -> float:
        """The service time in ms that a ``share`` in [0, 1) of all batches stays below."""
        return _at(share, self.quantiles_ms(level, rows, tokens))

    def quantiles_ms(self, level: Choice, rows: int, tokens: int | None) -> list[float]:
        """Service times in ms at SHARES."""
        key = (level, rows, tokens)
        if key not in self._quantiles:
            length = self.tokens[0] if tokens is None else tokens
            cells = [cell for cell in self.table.cells if cell.level == level]
            nearest = min(cells, key=lambda cell: (abs(cell.rows - rows), abs(cell.tokens - length)))
            shape = _shape(nearest)
            mean = float(np.trapezoid(shape, SHARES))
            self._quantiles[key] = [ms * self.mean_ms(level, rows, tokens) / mean for ms in shape]
        return self._quantiles[key]


class PairTimes(PairTable):
    """The same of a pipeline: where its retriever is slow its reranker is too, both at the same share of their times.

    Its levels are those of ``table``, or of them the given ones. The depth of its lists counts as rows of the reranker.
    """

    def __init__(self, table: PairTable, levels: Sequence[Choice] | None = None) -> None:
        self.stages = _times_of(table.retriever), _times_of(table.reranker)
        super().__init__(
            [table[level] for level in (table.levels if levels is None else levels)],
            *self.stages, passage_tokens=table.passage_tokens,
            max_tokens=table.max_tokens, search_ms=table.search_ms,
        )  # fmt: skip
        self._quantiles: dict[tuple, list[float]] = {}

    @property
    def tokens(self) -> tuple[int, ...]:
        """Lengths of queries that were measured."""
        return self.retriever.tokens

    @property
    def most_rows(self) -> int:
        """Queries of the largest batch whose lists were measured."""
        deepest = max(pair.depth for pair in self.pairs.values())
        retriever, reranker = self.stages
        return min(retriever.most_rows, reranker.most_rows // deepest)

    def check_levels(self, levels: Sequence[Choice]) -> None:
        """Raise InputError unless every one of ``levels`` is among the pairs."""
        for level in levels:
            self[level]

    def keeping(self, levels: Sequence[Choice]) -> "PairTimes":
        """Return the table of these pairs alone."""
        return PairTimes(self, levels)

    def draw_ms(self, level: Choice, rows: int, tokens: int | None, share: float) -> float:
        """As ServiceTimes.draw_ms."""
        return _at(share, self.quantiles_ms(level, rows, tokens))

    def quantiles_ms(self, level: Choice, rows: int, tokens: int | None) -> list[float]:
        """As ServiceTimes.quantiles_ms: the stages' quantiles added up."""
        key = (level, rows, tokens)
        if key not in self._quantiles:
            added = self._time_ms(level, rows, tokens, lambda table, *asked: np.array(table.quantiles_ms(*asked)))
            self._quantiles[key] = added.tolist()
        return self._quantiles[key]


Times = ServiceTimes | PairTimes


def _at(share: float, quantiles_ms: Sequence[float]) -> float:
    """Return the quantile function's value between those at SHARES."""
    i = bisect_right(SHARES, share) - 1
    way = (share - SHARES[i]) / (SHARES[i + 1] - SHARES[i])
    return quantiles_ms[i] + way * (quantiles_ms[i + 1] - quantiles_ms[i])


def _shape(cell: Cell) -> list[float]:
    """Quantiles of a cell at SHARES, before the mean is made right; they never fall."""
    p50, p95 = cell.p50_ms, max(cell.p50_ms, cell.p95_ms)
    p99 = max(p95, cell.p99_ms or p95 + NORMAL_P99 * (p95 - p50))
    return [max(2 * p50 - p95, p50 / 2), p50, p95, p99, 2 * p99 - p95]


def _times_of(table: StageTimes) -> ServiceTimes:
    return table if isinstance(table, ServiceTimes) else ServiceTimes(cast(LatencyTable, table))
