"""The settings of `slack` that serve given arrivals best."""

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
from elasticlm.schedule.policies import Slack

ALPHAS = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
BATCH_SIZES = (1, 2, 4, 8)
TARGET_WITHIN_BUDGET = 0.99  # share within T that a recommendation should reach
LEAST_GAIN = 0.001  # in effective quality (or share in time), for a level to be left out


@dataclass(frozen=True)
class Trial:
    """One setting and its result."""

    alpha: float
    batch_size: int
    levels: tuple[Choice, ...]
    within_budget: float
    effective_quality: float

    @property
    def rank(self) -> tuple[bool, float, float]:
        """Enough in time and then effective quality; else by the share in time."""
        enough = self.within_budget >= TARGET_WITHIN_BUDGET
        return (enough, *((self.effective_quality, 0.0) if enough else (self.within_budget, self.effective_quality)))

    def row(self) -> dict[str, Any]:
        return {"alpha": self.alpha, "batch size": self.batch_size, "levels": ",".join(map(level_name, self.levels)),
                "in time %": round(100 * self.within_budget, 2), "effective": self.effective_quality}  # fmt: skip


def recommend(
    table: Times,
    server: Server,
    traffic: OpenLoop | ClosedLoop,
    quality: Quality,
    budget_ms: float,
    spec: str,
) -> dict[str, Any]:
    """Return the settings of `slack` that serve the traffic best, and all that were tried.

    Best is the highest effective quality among those with TARGET_WITHIN_BUDGET within T, else the highest share
    within T. First all
    alphas and batch sizes with all levels; then, at the best, levels are left out one by one, as long as that gains.
    """

    def attempt(alpha: float, batch_size: int, levels: tuple[Choice, ...]) -> Trial:
        kept = table if levels == table.levels else table.keeping(levels)
        served = simulate(Slack(budget_ms, alpha), kept, replace(server, batch_size=batch_size), traffic)
        in_time = served.in_time(budget_ms)
        gained = quality.of(levels)[served.level] * in_time
        tried.append(Trial(alpha, batch_size, levels, round(float(in_time.mean()), 4), round(float(gained.mean()), 4)))
        bar.update()
        return tried[-1]

    tried: list[Trial] = []
    with progress(desc=f"settings for {spec}", unit=" tried") as bar:
        best = max((attempt(alpha, size, table.levels) for size in BATCH_SIZES for alpha in ALPHAS), key=_rank)
        while len(best.levels) > 1:
            without = [tuple(k for k in best.levels if k != level) for level in best.levels]
            fewer = max((attempt(best.alpha, best.batch_size, levels) for levels in without), key=_rank)
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
    reached = best["in time %"] >= 100 * TARGET_WITHIN_BUDGET
    missed = "" if reached else f" (nothing reached {100 * TARGET_WITHIN_BUDGET:g}%)"
    return (f"best: alpha {best['alpha']:g}, batch size {best['batch size']}, levels {best['levels']}: "
            f"{best['in time %']:g}% in time, effective {best['effective']:.4f}"
            + missed)  # fmt: skip
