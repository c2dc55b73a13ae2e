"""The curves of a training run as a picture: loss and dev RR@10 of every level."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from elasticlm.trainer.checkpoints import TrainingLog

SMOOTHED = 50  # the train curve is a running mean over a 50th of its points


def draw_curves(log: "TrainingLog", file: Path) -> None:
    """Draw a run's log: train loss as lines, dev loss as points, and below, where there is any, dev RR@10."""
    import matplotlib.pyplot as plt  # a second to import, which only who draws should pay
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    dev = [row for row in log.rows if row[1] == "dev"]
    levels = list(dict.fromkeys(row[2] for row in dev))
    ranked = any(not np.isnan(row[4]) for row in dev)
    figure = Figure(figsize=(8, 8 if ranked else 4.5), layout="constrained")
    axes: Any = figure.subplots(1 + ranked, 1, sharex=True, squeeze=False)[:, 0]
    for level, color in zip(levels, plt.get_cmap("viridis")(np.linspace(0, 0.9, len(levels))), strict=True):
        train = np.array([(row[0], row[3]) for row in log.rows if row[1] == "train" and row[2] == level])
        if len(train):
            width = max(1, len(train) // SMOOTHED)
            axes[0].plot(train[width - 1 :, 0], np.convolve(train[:, 1], np.ones(width) / width, "valid"),
                         color=color, linewidth=1)  # fmt: skip
        steps, losses, ranks = zip(*((row[0], row[3], row[4]) for row in dev if row[2] == level), strict=True)
        axes[0].plot(steps, losses, "o", color=color, markersize=4, label=f"{level} %")
        if ranked:
            axes[1].plot(steps, ranks, "o-", color=color, markersize=4, linewidth=1)
    axes[0].set(yscale="log", ylabel="loss (lines: train, points: dev)")
    axes[0].legend(title="level", fontsize="small")
    if ranked:
        axes[1].set(ylabel="dev RR@10 among a step's passages")
    axes[-1].set_xlabel("step")
    for axis in axes:
        axis.grid(alpha=0.3)
    FigureCanvasAgg(figure).print_png(file)
