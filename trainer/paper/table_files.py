"""Write a table of the paper in its own rows and columns, as far as its figures are there."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from elasticlm.files import new_file
from elasticlm.trainer.compare import compare
from elasticlm.trainer.evaluation.base import Evaluation
from elasticlm.trainer.paper.jobs import resolved
from elasticlm.trainer.paper.rows import GLUE_SCORE, Cell, Row, Table

SIGNIFICANT = 0.05
MARK = "§"
COLUMNS = ["block", "method", "structure", "paper_structure", "gflops", "paper_gflops", "column", "value", "share",
           "paper", "paper_share", "p"]  # fmt: skip


@dataclass(frozen=True)
class Figure:
    """A figure of ours: its value, and where it comes from; a mean comes from no evaluation."""

    value: float
    evaluation: Evaluation | None = None
    row: str = ""
    measure: str = ""


def write_table(table: Table, folder: Path, facts: Sequence[str]) -> pd.DataFrame:
    """Write TABLE.md and TABLE.csv; figures that are not there yet are left out.

    Args:
        facts: paragraphs above the table.

    Returns:
        A row for each figure: method, structure, column, value, share of the teacher's, the paper's figure and share,
        and the p-value of the t-test where the paper marks one.
    """
    found = {id(row): figures_of(row, table.columns) for row in table.rows}
    teacher = next((row for row in table.rows if row.method == table.teacher), None)
    records = []
    for number, block in enumerate(table.blocks, 1):
        for row in block:
            rival = rival_of(row, block, table.against)
            for column in table.columns:
                records.append({
                    "block": number, "method": row.method, "structure": row.shape, "paper_structure": row.structure,
                    "gflops": round(row.gflops, 3), "paper_gflops": row.paper_gflops, "column": column,
                    **_compared(found[id(row)].get(column), found[id(teacher)].get(column) if teacher else None,
                                row.paper.get(column), teacher.paper.get(column) if teacher else None),
                    "p": p_value(found[id(row)].get(column), found[id(rival)].get(column)) if rival else None,
                })  # fmt: skip
    numbers = dict.fromkeys(("value", "share", "paper", "paper_share", "p"), float)
    frame = pd.DataFrame(records, columns=COLUMNS).astype(numbers)
    for suffix, text in (("csv", frame.to_csv(index=False)), ("md", _markdown(table, frame, facts))):
        with new_file(folder / f"{table.name}.{suffix}") as file:
            file.write_text(text, "utf-8")
    return frame


def figures_of(row: Row, columns: Sequence[str]) -> dict[str, Figure]:
    """The row's figures by column, in percent; GLUE's score is the mean of the sets that the scale has."""
    found = {column: figure for column, cell in row.cells.items() if (figure := figure_of(cell)) is not None}
    if GLUE_SCORE in columns and found and len(found) == len(row.cells):
        found[GLUE_SCORE] = Figure(sum(figure.value for figure in found.values()) / len(found))
    return found


def figure_of(cell: Cell) -> Figure | None:
    """Read a figure, in percent; None where it has not been measured yet."""
    try:
        file = Path(resolved(str(cell.file)))
    except FileNotFoundError:
        return None
    if not file.exists():
        return None
    evaluation = Evaluation.read(file)
    row = cell.row or next(name for name in evaluation.metrics if name[0].isdigit())
    value = evaluation.metrics[row].get(cell.measure)
    return None if value is None else Figure(100 * value, evaluation, row, cell.measure)


def rival_of(row: Row, block: Sequence[Row], against: Mapping[str, str]) -> Row | None:
    """The row that this one is tested against; None where the paper has no such test."""
    return next((other for other in block if other.method == against.get(row.method)), None)


def p_value(figure: Figure | None, rival: Figure | None) -> float | None:
    """The paired t-test's two-sided p that a figure is better; None where it is not, or nothing can be tested."""
    if figure is None or rival is None or figure.value <= rival.value:
        return None
    if figure.evaluation is None or rival.evaluation is None:
        return None
    tests = compare(rival.evaluation, figure.evaluation, rows=(rival.row, figure.row))
    return next(iter(tests.values())).get(figure.measure, {}).get("t_test_p")


def _compared(
    figure: Figure | None, teacher: Figure | None, paper: float | None, papers_teacher: float | None
) -> dict[str, float | None]:
    share = 100 * figure.value / teacher.value if figure and teacher and teacher.value else None
    papers_share = 100 * paper / papers_teacher if paper and papers_teacher else None
    return {
        "value": None if figure is None else round(figure.value, 2),
        "share": None if share is None else round(share, 1),
        "paper": paper,
        "paper_share": None if papers_share is None else round(papers_share, 1),
    }


def _markdown(table: Table, frame: pd.DataFrame, facts: Sequence[str]) -> str:
    lines = [f"# {table.title} ({table.name})", "", *(line for fact in facts for line in (fact, ""))]
    if not table.columns:
        return "\n".join(lines)
    head = ["method", "structure", "GFLOPs", *table.columns]
    lines += ["| " + " | ".join(head) + " |", "| --- | --- | " + " | ".join(["---:"] * (len(head) - 2)) + " |"]
    best = frame.groupby(["block", "column"])["value"].transform("max") == frame["value"]
    frame = frame.assign(best=best & (frame.groupby("block")["method"].transform("nunique") > 1))
    for _, rows in frame.groupby(["method", "structure", "paper_structure"], sort=False):
        first = rows.iloc[0]
        papers = "" if first.structure == first.paper_structure else f" ({first.paper_structure})"
        cells = [first.method, f"{first.structure}{papers}", f"{first.gflops:.2f}", *map(_cell, rows.itertuples())]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(row: Any) -> str:
    """``**92.7**§ 98.9% (99.3%)``: our figure, its share of our teacher's, and the paper's share of its own.

    The best figure of a block is bold, as the paper underlines it.
    """
    theirs = "" if pd.isna(row.paper_share) else f" ({row.paper_share:.1f}%)"
    if pd.isna(row.value):
        return f"-{theirs}"
    mark = MARK if not pd.isna(row.p) and row.p < SIGNIFICANT else ""
    shown = f"**{row.value:.1f}**" if row.best else f"{row.value:.1f}"
    return f"{shown}{mark}" + ("" if pd.isna(row.share) else f" {row.share:.1f}%") + theirs
