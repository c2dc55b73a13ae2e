"""The picture of a policy study: share within the budget and effective quality, one bar per policy."""

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from elasticlm.benchmarks.plot import GRID, IN_TIME, INK, LATE, MUTED
from elasticlm.benchmarks.summary import budget_name


def draw(summary: dict[str, Any], budget_ms: float, file: Path) -> None:
    """Write the picture: one column per arrivals spec; share within T and effective quality, one bar per policy."""
    specs, budget = summary["arrivals"], budget_name(budget_ms)
    policies = list(dict.fromkeys(figures["policy"] for figures in summary["arms"].values()))
    width = 2.2 + 2.6 * len(specs) + 0.45 * len(specs) * max(0, len(policies) - 3)
    figure = Figure(figsize=(width, 6.4), dpi=144, facecolor="white", layout="constrained")
    grid = figure.subplots(2, len(specs), sharex=True, sharey="row", squeeze=False)
    bounds: list[Line2D] = []
    for column, (spec, study) in enumerate(specs.items()):
        arms = [figures for figures in summary["arms"].values() if figures["arrivals"] == spec]
        for axes, key, factor in ((grid[0, column], "within_budget", 100), (grid[1, column], "effective_quality", 1)):
            values = [figures["budgets"][budget][key] for figures in arms]
            heights = [factor * (value or 0.0) for value in values]
            labels = ["?" if value is None else f"{factor * value:.3g}" for value in values]
            bars = axes.bar(range(len(arms)), heights, color=IN_TIME, width=0.7)
            axes.bar_label(bars, labels, fontsize=8, color=INK, padding=2,
                           bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5})  # fmt: skip
            if study["bound"] and study["bound"][budget][key] is not None:
                bounds.append(
                    axes.axhline(factor * study["bound"][budget][key], color=LATE, lw=1.2, ls="--", zorder=1.5)
                )
            axes.set_xticks(range(len(arms)), [figures["policy"] for figures in arms], rotation=40, ha="right",
                            rotation_mode="anchor")  # fmt: skip
            axes.tick_params(colors=MUTED, labelsize=8)
            axes.grid(axis="y", color=GRID, lw=0.6)
            axes.set_axisbelow(True)
            axes.spines[["top", "right"]].set_visible(False)
            axes.margins(y=0.15)
        load = "" if study["load"] is None else f"\nload {study['load']:.2f} of level {summary['levels'][0]}"
        name = spec if len(spec) <= 36 else f"{spec[:6]}...{spec[-27:]}"
        grid[0, column].set_title(name + load, fontsize=10, color=INK)
    grid[0, 0].set_ylabel(f"within {budget} ms, %", color=INK)
    grid[1, 0].set_ylabel(f"effective quality\n({summary['measure']})", color=INK)
    if bounds:
        figure.legend(bounds[:1], ["the best with hindsight"], loc="outside lower right", frameon=False, fontsize=8)
    figure.savefig(file, metadata={"Software": "elasticlm"})
