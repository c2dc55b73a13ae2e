"""The picture and page of a simulation: rush.png after Figure 7 of ElasticLM, and index.html, one page that needs no
other file.
"""

import json
from pathlib import Path
from typing import Any

import pandas as pd

from elasticlm.benchmarks.drive import read_rows
from elasticlm.benchmarks.page import page
from elasticlm.benchmarks.plot import draw_rush, level_colors
from elasticlm.command import say
from elasticlm.files import new_file


def write_report(folder: Path, trace: pd.DataFrame, summary: dict[str, Any]) -> None:
    """Write trace.csv, summary.json, rush.png and index.html into the folder."""
    rounded = trace.assign(
        t_s=trace["t_s"].round(4), latency_ms=trace["latency_ms"].round(3), quality=trace["quality"].round(6)
    )
    rounded.to_csv(folder / "trace.csv", index=False)
    (folder / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    draw(folder, trace, summary)


def draw(folder: Path, trace: pd.DataFrame, summary: dict[str, Any]) -> None:
    """Write rush.png and index.html into the folder."""
    draw_rush(trace, summary, folder / "rush.png")
    with new_file(folder / "index.html") as temporary:
        picture = (folder / "rush.png").read_bytes()
        temporary.write_text(page(summary, picture, level_colors(trace)), encoding="utf-8")


def redraw(folder: Path) -> None:
    """Draw a simulation's picture and page again from its trace and summary."""
    draw(folder, read_rows(folder / "trace.csv"), json.loads((folder / "summary.json").read_text(encoding="utf-8")))
    say(f"{folder / 'index.html'}")
