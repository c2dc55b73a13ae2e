"""``elasticlm retention``: how much of the teacher's quality every level keeps, of several trainings.

Takes what ``elasticlm evaluate`` wrote, under a label each; a label may have several files (levels trained alone)::

    elasticlm retention elastic=a.json alone=b50.json,b30.json --output DIR
    elasticlm retention 5=5min.json 15=15min.json --over minutes --output DIR

Writes retention.csv (one row per label and level: RR@10, retention with its 95% interval, and the paired difference
from the first label with its interval and p) and retention.png, with the shares that the paper reports drawn in.
"""

from elasticlm import command
from elasticlm.arguments import non_negative_int
from elasticlm.benchmarks.labelled_files import require_labelled_files
from elasticlm.command import run_in_checkout
from elasticlm.files import claim


def main(argv: list[str] | None = None) -> None:
    """Entry point; the work is in elasticlm.benchmarks.retention_curves."""
    parser = command.parser("elasticlm retention", "Compare trainings by what every level keeps.")
    parser.add_argument("trainings", nargs="+", metavar="LABEL=A.json[,B.json]", help="evaluations under their label")
    parser.add_argument("--over", metavar="NAME", help="the labels are numbers: draw retention over them, under NAME")
    parser.add_argument("--title", default="", help="of the picture")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder for retention.csv and retention.png")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing output")
    parser.add_argument("--seed", type=non_negative_int, default=0, help="of the bootstrap")
    args = parser.parse_args(argv)
    require_labelled_files(args.trainings)
    with claim(args.output, overwrite=args.overwrite):
        from elasticlm.benchmarks.retention_curves import draw_retention

        draw_retention(args)


if __name__ == "__main__":
    run_in_checkout("retention")
