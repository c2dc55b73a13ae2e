"""The picture of a rush, after Figure 7 of ElasticLM: users, latency, level and quality over time, a column an arm."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # no window, wherever this runs

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from elasticlm.benchmarks.summary import arm_budget_ms, budget_name, in_time, size

INK, MUTED, GRID = "#1f2937", "#6b7280", "#e5e7eb"
IN_TIME, LATE, SHED, LINE, WAITING = "#2563eb", "#dc2626", "#9333ea", "#111827", "#f59e0b"
REFUSED = (503, 504)  # statuses of requests that were refused: the queue was full, or it was too late
SMOOTHED_S = 3  # seconds over which quality is averaged
DRAWN_POINTS = 4000  # requests drawn per arm; figures use all of them


def draw_rush(trace: pd.DataFrame, summary: dict[str, Any], file: Path) -> None:
    """Write the picture of a trace as a PNG."""
    arms = list(summary["arms"])
    duration_s = summary["load"]["duration_s"]
    colors = level_colors(trace)
    figure = Figure(figsize=(1.3 + 2.8 * len(arms), 8.6), dpi=144, facecolor="white")
    grid = figure.subplots(4, len(arms), sharex=True, sharey="row", squeeze=False,
                           height_ratios=(1, 1.6, 1, 1))  # fmt: skip
    for column, arm in enumerate(arms):
        rows = trace[trace["arm"] == arm]
        seconds = _by_second(rows, duration_s)
        budget_ms = arm_budget_ms(arm, summary)
        top, latency, level, quality = grid[:, column]
        _title(top, arm, summary["arms"][arm], budget_ms)
        _draw_users(top, seconds)
        _draw_latency(latency, rows, seconds, budget_ms)
        _draw_levels(level, seconds, colors)
        _draw_quality(quality, rows, seconds, budget_ms)
        quality.set_xlabel("time, s")
        quality.set_xlim(0, duration_s)
        quality.xaxis.set_major_locator(MaxNLocator(5, integer=True, prune="upper"))
        for axes in grid[:, column]:
            _plain(axes)
    users = "requests in flight" if summary["load"].get("arrivals") else "users"
    for axes, label in zip(
        grid[:, 0], (users, "latency, ms", "level served,\n% of requests", summary["measure"]), strict=True
    ):
        axes.set_ylabel(label, color=INK)
    _set_latency_scale(grid[1, 0], trace, [arm_budget_ms(arm, summary) for arm in arms])
    grid[0, 0].set_ylim(bottom=0)
    grid[2, 0].set_ylim(0, 100)
    grid[3, 0].set_ylim(0, 1)
    figure.tight_layout(rect=(0, 0, 1 - 0.9 / figure.get_figwidth(), 1))
    _legends(grid, colors, users)
    figure.savefig(file, metadata={"Software": "elasticlm"})


def level_colors(trace: pd.DataFrame) -> dict[str, str]:
    """Return a colour for every level served, largest first."""
    levels = sorted(trace["level"].dropna().unique(), key=size, reverse=True)
    places = np.linspace(0.08, 0.92, len(levels))
    return {level: to_hex(colormaps["viridis"](place)) for level, place in zip(levels, places, strict=True)}


def _by_second(rows: pd.DataFrame, duration_s: float) -> pd.DataFrame:
    """Return the rows with the second that they were sent in; a request in flight when one ends counts once."""
    return rows.assign(second=rows["t_s"].clip(upper=duration_s - 1e-9).astype(int))


def _title(axes: Axes, arm: str, figures: dict[str, Any], budget_ms: float) -> None:
    judged = figures["budgets"].get(budget_name(budget_ms))
    axes.set_title(arm, fontsize=12, fontweight="bold", color=INK, pad=22 if judged else 8)
    if judged:
        text = f"{judged['within_budget']:.1%} in time, effective {judged['effective_quality']:.3f}"
        axes.text(0.5, 1.04, text, transform=axes.transAxes, ha="center", fontsize=10, color=MUTED)


def _draw_users(axes: Axes, seconds: pd.DataFrame) -> None:
    users = seconds.groupby("second")["users"].max()
    answered_s = seconds["t_s"] + seconds["latency_ms"] / 1000  # the server said then how many waited
    depths = seconds["queue_depth"].astype(float)[answered_s < seconds["second"].max() + 1]
    waiting = depths.groupby(answered_s.astype(int)).mean()
    axes.fill_between(waiting.index + 0.5, waiting, color=WAITING, alpha=0.35, lw=0)
    axes.plot(users.index + 0.5, users, color=LINE, lw=1.6)


def _draw_latency(axes: Axes, rows: pd.DataFrame, seconds: pd.DataFrame, budget_ms: float) -> None:
    shown = rows.sample(DRAWN_POINTS, random_state=0) if len(rows) > DRAWN_POINTS else rows
    good, size = in_time(shown, budget_ms), 2.2 if len(shown) > 1500 else 4
    refused = shown["status"].isin(REFUSED)
    for chosen, color in ((good, IN_TIME), (~good & ~refused, LATE), (refused, SHED)):
        axes.plot(shown["t_s"][chosen], shown["latency_ms"][chosen], ".", ms=size, alpha=0.4, mew=0, color=color)
    slowest = seconds.groupby("second")["latency_ms"].quantile(0.95)
    axes.plot(slowest.index + 0.5, slowest, color=INK, lw=1.1)
    axes.axhline(budget_ms, color=LATE, lw=1.2, ls=(0, (5, 2)))


def _draw_levels(axes: Axes, seconds: pd.DataFrame, colors: dict[str, Any]) -> None:
    answered = seconds[seconds["status"] == 200]
    shares = pd.crosstab(answered["second"], answered["level"], normalize="index") * 100
    shares = shares.reindex(columns=list(reversed(colors)), fill_value=0.0)
    edges = np.repeat(shares.index.to_numpy(dtype=float), 2)
    edges[1::2] += 1
    axes.stackplot(edges, *np.repeat(shares.T.to_numpy(), 2, axis=1), colors=[colors[level] for level in shares], lw=0)


def _draw_quality(axes: Axes, rows: pd.DataFrame, seconds: pd.DataFrame, budget_ms: float) -> None:
    answered = seconds["quality"].where(seconds["status"] == 200)
    effective = seconds["quality"].where(in_time(seconds, budget_ms), 0.0)
    for values, style in (
        (answered, {"color": MUTED, "lw": 1.2, "ls": (0, (3, 2))}),
        (effective, {"color": IN_TIME, "lw": 1.8}),
    ):
        sums, counts = (values.groupby(seconds["second"]).agg(how).rolling(SMOOTHED_S, min_periods=1, center=True).sum()
                        for how in ("sum", "count"))  # fmt: skip
        line: dict[str, Any] = style
        axes.plot(sums.index + 0.5, sums / counts, **line)


def _set_latency_scale(axes: Axes, trace: pd.DataFrame, budgets_ms: list[float]) -> None:
    """Logarithmic: a request in time and one that waited in the worst queue lie far apart."""
    low = max(1.0, trace["latency_ms"].quantile(0.005) / 1.5)
    axes.set_yscale("log")
    axes.set_ylim(low, max(*budgets_ms, trace["latency_ms"].max()) * 1.6)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _plain(axes: Axes) -> None:
    axes.grid(color=GRID, lw=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(colors=MUTED, labelsize=9)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(GRID)


def _legends(grid: np.ndarray, colors: dict[str, str], users: str) -> None:
    """Explain each row to the right of its last column."""

    def line(label: str, color: str, **style: Any) -> Line2D:
        return Line2D([], [], label=label, color=color, **style)

    rows = [
        [line(users.replace(" in", "\nin"), LINE), Patch(color=WAITING, alpha=0.35, label="waiting")],
        [line("T", LATE, ls="--"), line("95%", INK), line("in time", IN_TIME, marker=".", ls=""),
         line("late", LATE, marker=".", ls=""), line("refused", SHED, marker=".", ls="")],
        [Patch(color=color, label=level) for level, color in colors.items()],
        [line("answered", MUTED, ls="--"), line("in time,\nelse 0", IN_TIME)],
    ]  # fmt: skip
    handles: Any
    for axes, handles in zip(grid[:, -1], rows, strict=True):
        many = len(handles) > 8  # pairs of levels
        axes.legend(handles=handles, loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False, handlelength=1.2,
                    fontsize=7 if many else 8.5, labelspacing=0.1 if many else 0.5)  # fmt: skip
