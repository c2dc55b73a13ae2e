"""The figures of the paper: the online simulation (7), every preserving level (8), every pair of a pipeline (9)."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # no window, wherever this runs

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from elasticlm.errors import InputError
from elasticlm.files import new_file
from elasticlm.schedule.latency import LatencyTable
from elasticlm.trainer.paper.jobs import ACTIONS, Job, Run
from elasticlm.trainer.paper.rows import (
    GLUE_SCORE,
    Cell,
    Row,
    Table,
    glue_cells,
    reranking_cells,
    retrieval_cells,
)
from elasticlm.trainer.paper.shapes import Shape
from elasticlm.trainer.paper.systems import Lab

DENSER, RANKER = "MC Psg MRR@10", "MC Doc MRR@10"
BUDGETS = (5, 7.5, 10)  # service times of the largest elastic level, where the scale says "auto"
ELASTIC = "elastic"


# -- Figure 8 ----------------------------------------------------------------------------------------------------------


def figure8(lab: Lab) -> Table:
    """Every level of ElasticLM, ElasticDenser and ElasticRanker, together and alone."""
    glue = tuple(lab.scale.glue)
    kinds = (("ElasticLM", glue_cells, glue), ("ElasticDenser", retrieval_cells, (DENSER,)),
             ("HDCT+ElasticRanker", reranking_cells, (RANKER,)))  # fmt: skip
    columns = (*glue, GLUE_SCORE, DENSER, RANKER)
    blocks = []
    for system, cells_of, own in kinds:
        rows = []
        for method in (system, f"{system} w/o elasticity"):
            levels = lab.levels if method == system else lab.scale.alone_levels
            for level in levels:
                shape = Shape(level=level)
                lab.jobs.taken()
                cells = cells_of(lab, method, shape, own)
                rows.append(_row(lab, method, shape, cells))
        blocks.append(tuple(rows))
    return Table("figure8", "Performance over the preserving levels", columns, "", {}, tuple(blocks))


def draw_levels(table: Table, frame: pd.DataFrame, folder: Path) -> None:
    """Write figure8.png: a panel a system, level against figure, elastic and alone."""
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    panels = figure.subplots(1, 3)
    for axes, block, column in zip(panels, table.blocks, (GLUE_SCORE, DENSER, RANKER), strict=True):
        for method in dict.fromkeys(row.method for row in block):
            rows = frame[(frame["method"] == method) & (frame["column"] == column)].dropna(subset=["value"])
            levels = rows["structure"].str.rstrip("%").astype(float)
            axes.plot(levels, rows["value"], marker="o", label="together" if method == block[0].method else "alone")
        axes.set(title=block[0].method, xlabel="preserving level, %", ylabel=column)
        axes.invert_xaxis()
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    with new_file(folder / "figure8.png") as file:
        figure.savefig(file, dpi=130, format="png")


# -- Figure 9 ----------------------------------------------------------------------------------------------------------


def figure9(lab: Lab) -> Table:
    """Every level of ElasticRanker behind every level of ElasticDenser, on passages."""
    name, _, measure = DENSER.rpartition(" ")
    whole = sum(lab.levels) / 100
    lab.jobs.taken()
    retriever, _ = lab.retriever(name, "elasticdenser", lab.distilled("condenser"), whole)
    ranker = lab.reranker(name, "elasticranker", {"model": lab.distilled("prop")}, whole)
    file = lab.pairs(name, retriever, ranker)
    jobs = tuple(lab.jobs.taken())
    rows = []
    for level in lab.levels:
        cells = {f"ElasticDenser {other:g}%": Cell(file, "RR@10", f"{other:g}+{level:g}") for other in lab.levels}
        rows.append(_row(lab, "ElasticRanker", Shape(level=level), cells, jobs))
    columns = tuple(f"ElasticDenser {level:g}%" for level in lab.levels)
    return Table("figure9", f"ElasticRanker behind ElasticDenser, {measure}", columns, "", {}, (tuple(rows),))


def copy_pairs(table: Table, frame: pd.DataFrame, folder: Path) -> None:
    """Write figure9.png, which the evaluation of the pairs has drawn."""
    shutil.copyfile(table.rows[0].cells[table.columns[0]].file.with_suffix(".png"), folder / "figure9.png")


# -- Figure 7 ----------------------------------------------------------------------------------------------------------


def figure7(lab: Lab) -> Table:
    """The rush, served by ElasticDenser and by static models of its levels that were trained alone."""
    settings, name = lab.scale.simulation, lab.scale.simulation["data"]
    whole = sum(lab.levels) / 100
    lab.jobs.taken()
    models = {ELASTIC: lab.retriever(name, "elasticdenser", lab.distilled("condenser"), whole)[0]}
    for level in settings["static_levels"]:
        alone = lab.distilled("condenser", level)
        models[f"{level:g}"] = lab.retriever(name, f"alone_condenser_{level:g}", alone, level / 100)[0]
    archives = {label: lab.archive(label, model, settings["tokens"]) for label, model in models.items()}
    output = lab.folder / "simulation"
    options = {key: str(settings[key]) for key in ("tokens", "users", "spawn-rate", "duration", "budgets")}
    options |= {key: lab.scale.retrieval[name][key] for key in ("data", "split")}
    words = (json.dumps(options), *(f"{label}={file}" for label, file in archives.items()))
    lab.jobs.add(Job("rush", words, output))
    jobs = tuple(lab.jobs.taken())
    arms = [ELASTIC, *(f"{level:g}" for level in settings["static_levels"])]
    rows = [_row(lab, "ElasticDenser" if arm == ELASTIC else "ElasticDenser w/o elasticity",
                 Shape(level=lab.levels[0] if arm == ELASTIC else float(arm)), {}, jobs) for arm in arms]  # fmt: skip
    return Table("figure7", "Online simulation", (), "", {}, (tuple(rows),))


def rush(output: Path, options: list[str], run_command: Run) -> None:
    """Send the same rush to the elastic model under each budget, then to every static one.

    Budgets "auto" are 5, 7.5 and 10 service times of the largest elastic level; users "auto" offer three times what it
    carries. Both are settled by the elastic model and are the same for the static ones.
    """
    settings = json.loads(options[0])
    archives = dict(word.split("=", 1) for word in options[1:])
    shared = ["--data", settings["data"], "--split", settings["split"], "--workload", "query",
              "--duration", settings["duration"]]  # fmt: skip
    elastic = Path(archives[ELASTIC])
    budgets = settings["budgets"]
    if budgets == "auto":
        table = LatencyTable.read(elastic.with_suffix(".latency.csv"))
        service_ms = table.mean_ms(table.levels[0], tokens=int(settings["tokens"]))
        budgets = ",".join(str(max(1, round(times * service_ms))) for times in BUDGETS)
    output.mkdir(parents=True, exist_ok=True)
    load = ["--users", settings["users"], "--spawn-rate", settings["spawn-rate"]]
    for label, archive in archives.items():
        folder = output / label
        if (folder / "summary.json").exists():
            continue  # of an interrupted rush
        arms = [f"queue:t={budget}" for budget in budgets.split(",")] if label == ELASTIC else [f"fixed:{label}"]
        if run_command("simulate", ["--archive", archive, *shared, *load, "--arms", *arms, "--budgets", budgets,
                                    "--output", str(folder), "--overwrite"]):  # fmt: skip
            raise InputError(f"the rush against {archive} failed; run the same command to go on from here")
        found = json.loads((folder / "summary.json").read_text("utf-8"))["load"]
        load = ["--users", str(found["users"]), "--spawn-rate", str(found["spawn_rate"])]


def draw_rush(table: Table, frame: pd.DataFrame, folder: Path) -> None:
    """Write figure7.png and figure7.md: latency and quality over time of every arm, and the users."""
    output = folder / "simulation"
    arms: dict[str, pd.DataFrame] = {}
    rows = []
    for part in sorted(output.iterdir(), key=lambda path: (path.name != ELASTIC, -_number(path.name))):
        summary = json.loads((part / "summary.json").read_text("utf-8"))
        trace = pd.read_csv(part / "trace.csv")
        for number, (arm, measured) in enumerate(summary["arms"].items(), 1):
            label = f"Elastic {'I' * number}" if part.name == ELASTIC else f"static {part.name}%"
            arms[label] = trace[trace["arm"] == arm]
            shares = {f"in time, T = {budget} ms": f"{judged['within_budget']:.1%}"
                      for budget, judged in measured["budgets"].items()}  # fmt: skip
            rows.append({"model": label, "policy": arm, "requests": measured["requests"], "p95 ms": measured["p95_ms"],
                         summary["measure"]: measured["quality"], **shares})  # fmt: skip
    figure = Figure(figsize=(9, 7.5), layout="constrained")
    latency, quality, users = figure.subplots(3, 1, sharex=True, height_ratios=(2, 2, 1))
    for label, trace in arms.items():
        second = trace["t_s"].astype(int)
        style = {"label": label, "linestyle": "-" if label.startswith("E") else "--"}
        latency.plot(trace.groupby(second)["latency_ms"].mean(), **style)
        quality.plot(trace.groupby(second)["quality"].mean().rolling(5, min_periods=1).mean(), **style)
    elastic = json.loads((output / ELASTIC / "summary.json").read_text("utf-8"))["arms"]
    for number, budget in enumerate(next(iter(elastic.values()))["budgets"]):
        latency.axhline(float(budget), color="0.6", linewidth=0.8, label="T" if number == 0 else None)
    first = next(iter(arms.values()))
    users.plot(first.groupby(first["t_s"].astype(int))["users"].max(), color="0.3")
    latency.set(ylabel="latency, ms", yscale="log")
    quality.set(ylabel=str(summary["measure"]))
    users.set(ylabel="users", xlabel="time, s", ylim=(0, None))
    latency.legend(frameon=False, ncols=2, fontsize=8)
    with new_file(folder / "figure7.png") as file:
        figure.savefig(file, dpi=130, format="png")
    shown = pd.DataFrame(rows)
    cells = (shown.columns, ["---"] * len(shown.columns), *shown.fillna("-").itertuples(index=False))
    lines = ["| " + " | ".join(map(str, line)) + " |" for line in cells]
    with new_file(folder / "figure7.md") as file:
        above = (folder / "figure7.md").read_text("utf-8")
        file.write_text("\n".join([above, *lines, "", "![the rush](figure7.png)", ""]), "utf-8")


def _number(name: str) -> float:
    try:
        return float(name)
    except ValueError:
        return np.inf


def _row(lab: Lab, method: str, shape: Shape, cells: dict[str, Cell], jobs: Sequence[Job] | None = None) -> Row:
    own = tuple(lab.jobs.taken()) if jobs is None else tuple(jobs)
    return Row(method, str(shape), None, {}, str(shape), shape.share(lab.base) * lab.base.gflops, cells, own)


ACTIONS["rush"] = rush
FIGURES: dict[str, Callable[[Lab], Table]] = {"figure7": figure7, "figure8": figure8, "figure9": figure9}
DRAWINGS: dict[str, Callable[[Table, pd.DataFrame, Path], None]] = {
    "figure7": draw_rush, "figure8": draw_levels, "figure9": copy_pairs,
}  # fmt: skip


def draw(table: Table, frame: pd.DataFrame, folder: Path) -> None:
    """Draw what a figure of the paper shows; a table needs nothing."""
    if table.name in DRAWINGS:
        DRAWINGS[table.name](table, frame, folder)
