"""``elasticlm paper``: make a table or figure of the paper, row by row."""

import argparse
from pathlib import Path

from elasticlm import command
from elasticlm.arguments import positive_int
from elasticlm.errors import InputError
from elasticlm.files import claim
from elasticlm.hints import unknown

TABLES = ("table4", "table5", "table6", "table7", "table8", "table9")
FIGURES = ("figure7", "figure8", "figure9")
SCALES = ("small", "paper")


def main(argv: list[str] | None = None) -> None:
    """Entry point; elasticlm.trainer.paper.making does the work."""
    args = parse_args(argv)
    output = Path(args.output or f"out/paper_{args.scale}")
    with claim(output, overwrite=True):
        from elasticlm.trainer.paper.making import make

        make(args, output)


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Return the options. Raises InputError for an unknown table."""
    parser = command.parser("elasticlm paper", "Make a table or figure of the paper, row by row; what several of them "
                            "need is made once. A second run goes on where the first one stopped.")  # fmt: skip
    parser.add_argument("table", metavar="TABLE", help=f"one of {', '.join(TABLES + FIGURES)}")
    parser.add_argument("--scale", choices=SCALES, default="small", help="small: two cores and hours; paper: the "
                        "paper's own models, data and settings, for GPUs")  # fmt: skip
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="change settings of the scale, "
                        "such as data=DIR (needed), base=MODEL, distil.max-steps=100; an empty value removes a data "
                        "set: glue.RTE=")  # fmt: skip
    parser.add_argument("--max-steps", type=positive_int, metavar="N", help="steps of every training (default: as the "
                        "scale has them)")  # fmt: skip
    parser.add_argument("--plan", action="store_true", help="only say what would be done and how long it would take")
    parser.add_argument("--output", metavar="DIR", help="folder for everything, shared by all tables of a scale "
                        "(default: out/paper_SCALE)")  # fmt: skip
    args = parser.parse_args(argv)
    if args.table not in TABLES + FIGURES:
        raise InputError(unknown("table", args.table, TABLES + FIGURES))
    return args


if __name__ == "__main__":
    command.run_in_checkout("paper")
