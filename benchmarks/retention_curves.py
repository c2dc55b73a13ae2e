"""What every level of several trainings keeps: table and picture (``elasticlm retention``)."""

import argparse
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from elasticlm import command
from elasticlm.benchmarks.labelled_files import labelled_files
from elasticlm.errors import InputError
from elasticlm.files import new_folder
from elasticlm.retrieval.measures import difference

MEASURE = "RR@10"
SHARE = f"{MEASURE}, share of the teacher's"
PAPER = {50.0: 0.953, 30.0: 0.947, 10.0: 0.903}  # of the teacher's MRR@10, ElasticDenser


@dataclass(frozen=True)
class Row:
    """One level of one training: its mean, its retention [value, low, high], its values by query id."""

    label: str
    level: float
    mean: float
    retention: tuple[float, float, float]
    per_query: Mapping[str, float]


def draw_retention(args: argparse.Namespace) -> None:
    """Read, compare and draw what the options name."""
    plt.switch_backend("Agg")
    rows = [row for training in args.trainings for row in read(training)]
    if args.over and not all(_is_number(row.label) for row in rows):
        raise InputError(f"--over {args.over}: expected numbers as labels")
    table = compare(rows, seed=args.seed)
    with new_folder(args.output, overwrite=args.overwrite) as folder:
        table.to_csv(folder / "retention.csv", index=False)
        (draw_over if args.over else draw)(rows, args.over or "", args.title, folder / "retention.png")
    command.print_table(table.to_dict("records"))
    command.print_result({"output": args.output, "rows": len(rows)})


def read(training: str) -> list[Row]:
    """The levels of ``LABEL=A.json[,B.json]``; InputError where a file is no evaluation."""
    label, files = labelled_files(training)
    rows = []
    for file in files:
        try:
            found: dict[str, Any] = json.loads(Path(file).read_text("utf-8"))
            values = {name: dict(zip(found["query_ids"], found["per_query"][name][MEASURE], strict=True))
                      for name in found["retention"]}  # fmt: skip
            rows += [
                Row(label, float(name), found["metrics"][name][MEASURE], tuple(kept[MEASURE]), values[name])
                for name, kept in found["retention"].items()
            ]
        except OSError as error:
            raise InputError(f"{file}: {error.strerror}") from None
        except (ValueError, KeyError, TypeError):
            raise InputError(f"{file}: not an evaluation; expected a file written by `elasticlm evaluate`") from None
    return rows


def compare(rows: list[Row], *, seed: int = 0) -> pd.DataFrame:
    """One row per label and level, with the paired difference from the first label's same level where it has one."""
    first = {row.level: row for row in rows if row.label == rows[0].label}
    lines = []
    for row in rows:
        value, low, high = row.retention
        line = {"training": row.label, "level": row.level, MEASURE: round(row.mean, 4), "retention": round(value, 4),
                "low": round(low, 4), "high": round(high, 4)}  # fmt: skip
        reference = first.get(row.level)
        if reference is not None and reference is not row:
            if set(reference.per_query) != set(row.per_query):
                raise InputError(f"{row.label}: measured on other queries than {reference.label}")
            ours = np.array([row.per_query[qid] for qid in reference.per_query])
            interval, p = difference(np.array(list(reference.per_query.values())), ours, seed=seed)
            line |= dict(zip(("difference", "d_low", "d_high"), np.round(interval, 4), strict=True)) | {"p": p}
        lines.append(line)
    return pd.DataFrame(lines)


def draw(rows: list[Row], _: str, title: str, file: Path) -> None:
    """Retention over the level's size, one line per training."""
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    for label in dict.fromkeys(row.label for row in rows):
        points = sorted((row.level, row.retention) for row in rows if row.label == label)
        levels, kept = zip(*points, strict=True)
        _line(axes, levels, kept, label=label)
    axes.plot(*zip(*PAPER.items(), strict=True), "kx", label="the paper's shares")
    axes.set(title=title, ylabel=SHARE)
    finish(figure, axes, "level, % of the prunable parameters", {row.level for row in rows}, file)


def draw_over(rows: list[Row], name: str, title: str, file: Path) -> None:
    """Retention over what the labels count, one line per level; the paper's shares as dashed lines."""
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    for level in sorted({row.level for row in rows}, reverse=True):
        points = sorted((float(row.label), row.retention) for row in rows if row.level == level)
        at, kept = zip(*points, strict=True)
        color = _line(axes, at, kept, label=f"{level:g} %")
        if level in PAPER:
            axes.axhline(PAPER[level], color=color, linestyle="--", linewidth=1)
    axes.set(title=title, ylabel=SHARE)
    finish(figure, axes, name, {float(row.label) for row in rows}, file)


def _line(axes: plt.Axes, at: tuple, kept: tuple, label: str) -> Any:
    values = np.array(kept)
    color = axes.plot(at, values[:, 0], "o-", label=label)[0].get_color()
    axes.fill_between(at, values[:, 1], values[:, 2], color=color, alpha=0.15)
    return color


def finish(figure: plt.Figure, axes: plt.Axes, over: str, at: Iterable[float], file: Path) -> None:
    """Give the picture its logarithmic axis ``over`` the values ``at``, a grid and a legend; write it."""
    ticks = sorted(at)
    axes.set(xscale="log", xlabel=over)
    axes.set_xticks(ticks, [f"{value:g}" for value in ticks])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(file, dpi=120)
    plt.close(figure)


def _is_number(label: str) -> bool:
    try:
        float(label)
    except ValueError:
        return False
    return True
