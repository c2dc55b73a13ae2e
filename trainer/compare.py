"""``elasticlm compare``: do two evaluations of the same queries differ, level by level?"""

from typing import TYPE_CHECKING, Any

from elasticlm import command
from elasticlm.arguments import non_negative_int
from elasticlm.errors import InputError
from elasticlm.files import require_file

if TYPE_CHECKING:
    from elasticlm.trainer.evaluation.base import Evaluation
SHOWN = ("RR@10", "nDCG@10", "accuracy", "squared error")


def main(argv: list[str] | None = None) -> None:
    parser = command.parser(
        "elasticlm compare", "Test whether two evaluations of the same queries differ (paired bootstrap)."
    )
    parser.add_argument("first", metavar="A.json", help="what evaluate wrote")
    parser.add_argument("second", metavar="B.json", help="what evaluate wrote, on the same split")
    parser.add_argument("--seed", type=non_negative_int, default=0, help="seed of the bootstrap")
    args = parser.parse_args(argv)

    for file in (args.first, args.second):
        require_file(file)
    from elasticlm.trainer.evaluation.base import Evaluation

    differences = compare(Evaluation.read(args.first), Evaluation.read(args.second), seed=args.seed)
    table = [
        {
            "level": row,
            "metric": measure,
            "A": f"{found['a']:.4f}",
            "B": f"{found['b']:.4f}",
            "B - A": f"{found['difference'][0]:+.4f} [{found['difference'][1]:+.4f}, {found['difference'][2]:+.4f}]",
            "p": f"{found['p']:.3f}",
        }
        for row, measures in differences.items()
        for measure, found in measures.items()
        if measure in SHOWN
    ]
    command.print_table(table)
    command.print_result({"a": args.first, "b": args.second, "differences": differences})


def compare(first: "Evaluation", second: "Evaluation", *, seed: int = 0) -> dict[str, dict[str, dict[str, Any]]]:
    """Return, for the rows and metrics that both have: both means, B - A with its 95% interval, two-sided p.

    Raises InputError where the two were not measured on the same judged queries.
    """
    from elasticlm.retrieval.measures import difference, mean

    if first.split_sha256 != second.split_sha256:
        raise InputError(
            f"the two were measured on different queries or judgements: {first.data}#{first.split} "
            f"({first.split_sha256[:12]}) and {second.data}#{second.split} ({second.split_sha256[:12]})"
        )
    place = {qid: i for i, qid in enumerate(second.query_ids)}
    order = [place[qid] for qid in first.query_ids]
    differences: dict[str, dict[str, dict[str, Any]]] = {}
    for row, measures in first.values.items():
        for measure, a in measures.items():
            if measure in second.values.get(row, {}):
                b = second.values[row][measure][order]
                interval, p = difference(a, b, seed=seed)
                differences.setdefault(row, {})[measure] = {"a": mean(a), "b": mean(b), "difference": interval, "p": p}
    if not differences:
        raise InputError(f"the two have no row in common: {', '.join(first.values)} and {', '.join(second.values)}")
    return differences
