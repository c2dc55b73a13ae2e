"""``elasticlm report``: draw the picture and the page of a simulation again from its trace.csv and summary.json."""

from pathlib import Path

from elasticlm.command import parser, run_in_checkout
from elasticlm.files import require_file


def main(argv: list[str] | None = None) -> None:
    """Entry point; the work is in elasticlm.benchmarks.rush_report."""
    options = parser("elasticlm report", "Draw a simulation's picture and page again.")
    options.add_argument("folder", type=Path, metavar="DIR", help="output folder of `elasticlm simulate`")
    folder = options.parse_args(argv).folder
    for name in ("trace.csv", "summary.json"):
        require_file(folder / name, "no such file; expected the output folder of `elasticlm simulate`")
    from elasticlm.benchmarks.rush_report import redraw

    redraw(folder)


if __name__ == "__main__":
    run_in_checkout("report")
