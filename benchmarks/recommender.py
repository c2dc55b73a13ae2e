"""The server that given arrivals need: workers, batch size, queue size and levels to keep."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from elasticlm.benchmarks.queue_server import Server
from elasticlm.benchmarks.queue_simulation import simulate
from elasticlm.benchmarks.queue_traffic import ClosedLoop, OpenLoop
from elasticlm.benchmarks.service_times import Times
from elasticlm.benchmarks.study_inputs import Quality
from elasticlm.command import progress
from elasticlm.model.structure import Choice, level_name
from elasticlm.schedule.admission import queue_bound
from elasticlm.schedule.policies import Deadline

WORKERS = (1, 2, 4, 8)
BATCH_SIZES = (1, 2, 4, 8)
TARGET_WITHIN_BUDGET = 0.99  # share within T that a recommendation should reach
TARGET_QUALITY = 0.97  # effective quality that it should reach, as a share of the largest level's
LEAST_GAIN = 0.001  # in effective quality (or share in time), for a level to be left out


@dataclass(frozen=True)
class Trial:
    """One server and its result."""

    server: Server
    levels: tuple[Choice, ...]
    within_budget: float
    effective_quality: float

    @property
    def rank(self) -> tuple[bool, float, float]:
        """Enough in time and then effective quality; else by the share in time."""
        enough = self.within_budget >= TARGET_WITHIN_BUDGET
        return (enough, *((self.effective_quality, 0.0) if enough else (self.within_budget, self.effective_quality)))

    def row(self) -> dict[str, Any]:
        return {"workers": self.server.workers, "batch size": self.server.batch_size,
                "queue size": self.server.queue_size, "levels": ",".join(map(level_name, self.levels)),
                "in time %": round(100 * self.within_budget, 2), "effective": self.effective_quality}  # fmt: skip


def recommend(
    table: Times,
    server: Server,
    traffic: OpenLoop | ClosedLoop,
    quality: Quality,
    budget_ms: float,
    spec: str,
    workers: Sequence[int] = WORKERS,
) -> dict[str, Any]:
    """Return the smallest server that serves the traffic well under ``deadline``, and all that were tried.

    It has the fewest workers that reach TARGET_WITHIN_BUDGET and TARGET_QUALITY (the most, if none does), with the best
    batch size: that of the highest effective quality among those with enough in time, else of the highest share in
    time. Then levels are left out one by one, as long as that gains.
    """

    def attempt(count: int, batch_size: int, levels: tuple[Choice, ...]) -> Trial:
        kept = table if levels == table.levels else table.keeping(levels)
        queue_size = queue_bound(
            kept, levels[-1], budget_ms=budget_ms, batch_size=batch_size, workers=count, rows=server.rows,
            tokens=server.tokens, overhead_ms=server.overhead_ms, turnaround_ms=server.turnaround_ms,
        )  # fmt: skip
        sized = replace(server, batch_size=batch_size, workers=count, queue_size=queue_size)
        served = simulate(Deadline(budget_ms), kept, sized, traffic)
        in_time = served.in_time(budget_ms)
        gained = quality.of(levels)[served.level] * in_time
        tried.append(Trial(sized, levels, round(float(in_time.mean()), 4), round(float(gained.mean()), 4)))
        bar.update()
        return tried[-1]

    tried: list[Trial] = []
    wanted = TARGET_QUALITY * quality.values[table.levels[0]]
    with progress(desc=f"servers for {spec}", unit=" tried") as bar:
        for count in workers:
            best = max((attempt(count, size, table.levels) for size in BATCH_SIZES), key=_rank)
            if best.rank[0] and best.effective_quality >= wanted:
                break
        while len(best.levels) > 1:
            without = [tuple(k for k in best.levels if k != level) for level in best.levels]
            fewer = max((attempt(best.server.workers, best.server.batch_size, levels) for levels in without), key=_rank)
            if not (fewer.rank[0], fewer.rank[1] - LEAST_GAIN) > best.rank[:2]:
                break
            best = fewer
    return {"best": best.row(), "enough_in_time": best.rank[0], "tried": [trial.row() for trial in tried]}


def _rank(trial: Trial) -> tuple[bool, float, float]:
    return trial.rank


def levels_left_out(levels: str, known: Sequence[str]) -> str:
    """Return a row's levels as people see them: of many, those that are left out."""
    absent = [level for level in known if level not in levels.split(",")]
    return f"all but {','.join(absent)}" if absent else "all"


def advice(best: dict[str, Any]) -> str:
    """Return the recommendation as a sentence."""
    reached = best["in time %"] >= 100 * TARGET_WITHIN_BUDGET
    missed = "" if reached else f" (nothing reached {100 * TARGET_WITHIN_BUDGET:g}%)"
    return (f"best: {best['workers']} workers, batch size {best['batch size']}, queue size {best['queue size']}, "
            f"levels {best['levels']}: {best['in time %']:g}% in time, effective {best['effective']:.4f}"
            + missed)  # fmt: skip
