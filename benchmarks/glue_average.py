"""What every level keeps over several sets of GLUE, and the mean (``elasticlm glue-mean``)."""

import argparse
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd

from elasticlm import command
from elasticlm.benchmarks.labelled_files import labelled_files
from elasticlm.benchmarks.retention_curves import finish
from elasticlm.errors import InputError
from elasticlm.files import new_folder
from elasticlm.model.structure import parse_level

PAPER = {50.0: 0.995, 30.0: 0.993, 10.0: 0.971}  # ElasticLM's mean over sst2, mrpc, stsb, qnli and rte
BY_F1 = ("mrpc", "qqp")
MEAN = "mean"


def average_glue(args: argparse.Namespace) -> None:
    """Read, compare and draw what the options name."""
    table = pd.concat([read(training) for training in args.trainings], ignore_index=True)
    means = mean_over_sets(table)
    plt.switch_backend("Agg")
    with new_folder(args.output, overwrite=args.overwrite) as folder:
        pd.concat([table, means]).to_csv(folder / "glue.csv", index=False)
        draw(table, means, folder / "glue.png")
    shown = pd.concat([table[table.chosen], means]).drop(columns="chosen")
    command.print_table(shown.astype(object).where(shown.notna(), "-").to_dict("records"))
    command.print_result({"output": args.output, "mean": means.drop(columns=["set", "chosen"]).to_dict("records")})


def read(training: str) -> pd.DataFrame:
    """The rows of ``LABEL=A.json[,B.json]``; InputError where a file is no evaluation of a classifier."""
    label, files = labelled_files(training)
    rows = []
    for file in files:
        try:
            found = json.loads(Path(file).read_text("utf-8"))
            name = Path(found["data"].rpartition(":")[2]).name
            chosen = chosen_measure(name, next(iter(found["metrics"].values())))
            for row, values in found["metrics"].items():
                for measure, value in values.items():
                    kept = found["retention"].get(row, {}).get(measure) or [math.nan] * 3
                    rows.append((name, measure, label, row, value, *kept, measure == chosen))
        except OSError as error:
            raise InputError(f"{file}: {error.strerror}") from None
        except (ValueError, KeyError, TypeError, AttributeError):
            raise InputError(f"{file}: not an evaluation of a classifier, as `elasticlm evaluate` writes it") from None
    columns = ["set", "measure", "training", "level", "value", "retention", "low", "high", "chosen"]
    return pd.DataFrame(rows, columns=columns)


def chosen_measure(name: str, measures: Mapping[str, float]) -> str:
    """Which of a set's measures the mean takes.

    >>> chosen_measure("mrpc", {"accuracy": 0.8, "F1": 0.9}), chosen_measure("rte", {"accuracy": 0.6, "F1": 0.5})
    ('F1', 'accuracy')
    """
    if "accuracy" not in measures:
        return "Spearman"
    return "F1" if name in BY_F1 and "F1" in measures else "accuracy"


def mean_over_sets(table: pd.DataFrame) -> pd.DataFrame:
    """A row for each training and level that all sets have: the mean of its retentions with its 95% interval."""
    counted = table[table.chosen & table.retention.notna()]
    rows = []
    for (training, level), group in counted.groupby(["training", "level"], sort=False):
        if set(group.set) == set(table.set):
            mean, n = group.retention.mean(), len(group)
            below = math.hypot(*(group.retention - group.low)) / n
            above = math.hypot(*(group.high - group.retention)) / n
            numbers = (group.value.mean(), mean, mean - below, mean + above)
            rows.append((MEAN, "chosen", training, level, *(round(number, 6) for number in numbers), True))
    return pd.DataFrame(rows, columns=table.columns)


def draw(table: pd.DataFrame, means: pd.DataFrame, file: Path) -> None:
    """Retention over the level's size: the sets thin, the mean thick, the paper's shares as crosses."""
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    levels = table[table.chosen & table.retention.notna()].assign(size=lambda rows: rows.level.map(parse_level))
    first = levels.training.iloc[0]
    for name, group in levels[levels.training == first].groupby("set", sort=False):
        _line(axes, group.sort_values("size"), label=name, linewidth=1, alpha=0.7)
    for training, group in means.assign(size=means.level.map(parse_level)).groupby("training", sort=False):
        ordered = group.sort_values("size")
        _line(axes, ordered, label=f"mean, {training}", color="black", linewidth=2.5,
              linestyle="-" if training == first else "--")  # fmt: skip
        axes.fill_between(ordered["size"], ordered.low, ordered.high, color="black", alpha=0.1)
    axes.plot(*zip(*PAPER.items(), strict=True), "kx", label="the paper's mean")
    axes.set_ylabel("share of level 100 fine-tuned alone")
    finish(figure, axes, "level, % of the prunable parameters", set(levels["size"]), file)


def _line(axes: plt.Axes, rows: pd.DataFrame, **style: Any) -> None:
    axes.plot(rows["size"], rows.retention, marker="o", markersize=4, **style)
