"""Service times for the queue simulation: drawn from a latency table, or from the two tables of a pipeline."""

from collections.abc import Sequence
from typing import cast

from elasticlm.model.structure import Choice, Level
from elasticlm.schedule.cascade import PairTable, StageTimes
from elasticlm.schedule.latency import LatencyTable
from elasticlm.schedule.quantiles import at


class ServiceTimes:
    """Service times that are drawn from a latency table, with its lookups remembered.

    For the distribution see elasticlm.schedule.quantiles. ``levels`` None keeps all of the table's.
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

    def scaled(self, factor: float) -> "ServiceTimes":
        """Return the times multiplied by a factor."""
        return ServiceTimes(self.table.scaled(dict.fromkeys(self.table.levels, factor)))

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
        return at(share, self.quantiles_ms(level, rows, tokens))

    def quantiles_ms(self, level: Choice, rows: float = 1, tokens: float | None = None) -> list[float]:
        """Service times in ms at elasticlm.schedule.quantiles.SHARES."""
        key = (level, rows, tokens)
        if key not in self._quantiles:
            self._quantiles[key] = self.table.quantiles_ms(cast(Level, level), rows, tokens)
        return self._quantiles[key]


class PairTimes(PairTable):
    """The same for a pipeline, whose stages are drawn independently.

    Its levels are those of ``table``, or of them the given ones. The depth of its lists counts as rows of the reranker.
    """

    def __init__(self, table: PairTable, levels: Sequence[Choice] | None = None) -> None:
        self.stages = _times_of(table.retriever), _times_of(table.reranker)
        super().__init__(
            [table[level] for level in (table.levels if levels is None else levels)],
            *self.stages, passage_tokens=table.passage_tokens,
            max_tokens=table.max_tokens, search_ms=table.search_ms,
        )  # fmt: skip

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

    def scaled(self, factor: float) -> "PairTimes":
        """Return the times of both stages and of the search multiplied by a factor."""
        retriever, reranker = (times.scaled(factor) for times in self.stages)
        table = PairTable(list(self.pairs.values()), retriever, reranker, passage_tokens=self.passage_tokens,
                          max_tokens=self.max_tokens, search_ms=factor * self.search_ms)  # fmt: skip
        return PairTimes(table, self.levels)

    def draw_ms(self, level: Choice, rows: int, tokens: int | None, share: float) -> float:
        """As ServiceTimes.draw_ms."""
        return at(share, self.quantiles_ms(level, rows, tokens))


Times = ServiceTimes | PairTimes


def times_of(table: LatencyTable | PairTable) -> Times:
    """Return the service times of an archive's table."""
    return PairTimes(table) if isinstance(table, PairTable) else ServiceTimes(table)


def _times_of(table: StageTimes) -> ServiceTimes:
    return table if isinstance(table, ServiceTimes) else ServiceTimes(cast(LatencyTable, table))
