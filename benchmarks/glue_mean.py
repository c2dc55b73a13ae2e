"""``elasticlm glue-mean``: what every level keeps over several sets of GLUE, and their mean.

Takes evaluations of classifiers by ``elasticlm evaluate``, each with a label, as ``elasticlm retention`` does::

    elasticlm glue-mean elastic=out/rte/dev.json,out/mrpc/dev.json alone=out/rte/alone50.json --output DIR

Writes glue.csv (one row per set, measure, training and level, with the teacher and the majority; retention with its 95%
interval) and glue.png. The mean over the sets takes one measure of each, as the paper does: F1 of mrpc and qqp,
Spearman's correlation of a regression, else accuracy. Sets are independent: the mean's interval is made of theirs.
"""

from elasticlm import command
from elasticlm.benchmarks.labelled_files import require_labelled_files
from elasticlm.command import run_in_checkout
from elasticlm.files import claim


def main(argv: list[str] | None = None) -> None:
    """Entry point; the work is in elasticlm.benchmarks.glue_average."""
    parser = command.parser("elasticlm glue-mean", "What every level keeps over several sets of GLUE.")
    parser.add_argument("trainings", nargs="+", metavar="LABEL=A.json[,B.json]", help="evaluations under their label")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder for glue.csv and glue.png")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing output")
    args = parser.parse_args(argv)
    require_labelled_files(args.trainings)
    with claim(args.output, overwrite=args.overwrite):
        from elasticlm.benchmarks.glue_average import average_glue

        average_glue(args)


if __name__ == "__main__":
    run_in_checkout("glue-mean")
