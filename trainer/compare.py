"""``elasticlm compare``: do two evaluations of the same queries differ, level by level?"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from elasticlm import command
from elasticlm.arguments import non_negative_int
from elasticlm.errors import InputError
from elasticlm.files import require_file

if TYPE_CHECKING:
    import numpy as np

    from elasticlm.trainer.evaluation.base import Evaluation
SHOWN = ("RR@10", "RR@100", "nDCG@10", "Success@5", "Success@20", "Success@100", "accuracy", "F1", "Spearman",
         "Pearson", "squared error")  # fmt: skip

Differences = dict[str, dict[str, dict[str, Any]]]
"""By row and metric: ``a`` and ``b``, ``difference`` [B - A, low, high], ``p`` and ``t_test_p``."""


def main(argv: list[str] | None = None) -> None:
    parser = command.parser(
        "elasticlm compare",
        "Test whether two evaluations of the same queries differ (paired bootstrap and paired t-test).",
    )
    parser.add_argument("first", metavar="A.json", help="what evaluate wrote")
    parser.add_argument("second", metavar="B.json", help="what evaluate wrote, on the same split")
    parser.add_argument("--rows", nargs=2, metavar=("A_ROW", "B_ROW"), help="compare this row of A.json, such as level "
                        "30, with this row of B.json, such as 100 (default: each row that both have)")  # fmt: skip
    parser.add_argument("--seed", type=non_negative_int, default=0, help="seed of the bootstrap")
    args = parser.parse_args(argv)

    for file in (args.first, args.second):
        require_file(file)
    from elasticlm.trainer.evaluation.base import Evaluation

    first, second = Evaluation.read(args.first), Evaluation.read(args.second)
    for file, evaluation in ((args.first, first), (args.second, second)):
        if names := not_comparable(evaluation):
            command.say(f"{file}: {', '.join(names)} cannot be compared, since the file holds no predictions; "
                        "run `elasticlm evaluate` again to store them")  # fmt: skip
    rows = (args.rows[0], args.rows[1]) if args.rows else None
    differences = compare(first, second, rows=rows, seed=args.seed)
    command.print_table(table(differences))
    command.print_result({"a": args.first, "b": args.second, "differences": differences})


def compare(
    first: "Evaluation", second: "Evaluation", *, rows: tuple[str, str] | None = None, seed: int = 0
) -> Differences:
    """Return, for the rows and metrics that both have, how the second differs from the first.

    Means over queries are compared query by query. F1 and the correlations are not means: their interval and p are
    those of resampled examples, and their t-test pairs the pseudo-values of the jackknife (see
    elasticlm.trainer.evaluation.glue_measures). They need the predictions that evaluations of classifiers store.

    Args:
        rows: the row of the first and of the second; None: each row that both have, compared with its namesake.

    Returns:
        Under the row's name, or "A vs B" where the rows' names differ: both values, B - A with its 95% interval, the
        two-sided p of the bootstrap and of the t-test. A value that does not exist is None.

    Raises InputError where the two were not measured on the same judged queries, or where a row is missing.
    """
    if first.split_sha256 != second.split_sha256:
        raise InputError(
            f"the two were measured on different queries or judgements: {first.data}#{first.split} "
            f"({first.split_sha256[:12]}) and {second.data}#{second.split} ({second.split_sha256[:12]})"
        )
    if rows is None:
        pairs = [(row, row) for row in first.values if row in second.values]
        if not pairs:
            raise InputError(
                f"the two have no row in common: {', '.join(first.values)} and {', '.join(second.values)}; "
                "give --rows A_ROW B_ROW to compare two of them"
            )
    else:
        pairs = [rows]
        for row, evaluation, name in zip(rows, (first, second), ("A", "B"), strict=True):
            if row not in evaluation.values:
                raise InputError(f"--rows {' '.join(rows)}: {name}.json has no row {row!r}; "
                                 f"its rows are {', '.join(evaluation.values)}")  # fmt: skip
    place = {qid: i for i, qid in enumerate(second.query_ids)}
    order = [place[qid] for qid in first.query_ids]
    differences = {a if a == b else f"{a} vs {b}": dict(_measures(first, second, a, b, order, seed)) for a, b in pairs}
    differences = {name: measures for name, measures in differences.items() if measures}
    if not differences:
        raise InputError("the two have no metric in common")
    return differences


def not_comparable(evaluation: "Evaluation") -> list[str]:
    """Names of the metrics that are not means over examples, where the predictions that they need are missing."""
    from elasticlm.trainer.evaluation.glue_measures import WITHOUT_EACH

    measured = {name for values in evaluation.metrics.values() for name in values}
    return [name for name in WITHOUT_EACH if name in measured] if evaluation.targets is None else []


def table(differences: Differences) -> list[dict[str, str]]:
    """One row per level and metric for people."""

    def number(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    return [
        {
            "level": row,
            "metric": measure,
            "A": number(found["a"], ".4f"),
            "B": number(found["b"], ".4f"),
            "B - A": "{} [{}, {}]".format(*(number(value, "+.4f") for value in found["difference"])),
            "p": number(found["p"], ".3f"),
            "t-test p": number(found["t_test_p"], ".3f"),
        }
        for row, measures in differences.items()
        for measure, found in measures.items()
        if measure in SHOWN
    ]


def _measures(
    first: "Evaluation", second: "Evaluation", a: str, b: str, order: list[int], seed: int
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The metrics of row ``a`` of the first and row ``b`` of the second, whose queries come in this order."""
    from elasticlm.retrieval.measures import difference, mean
    from elasticlm.trainer.evaluation.glue_measures import WITHOUT_EACH
    from elasticlm.trainer.evaluation.significance import t_test_p

    for measure, values in first.values[a].items():
        if measure in second.values[b]:
            others = second.values[b][measure][order]
            interval, p = difference(values, others, seed=seed)
            yield measure, {"a": mean(values), "b": mean(others), "difference": interval, "p": p,
                            "t_test_p": t_test_p(values, others)}  # fmt: skip
    if first.targets is None or a not in first.predictions or b not in second.predictions:
        return
    for measure in WITHOUT_EACH:
        if measure in first.metrics.get(a, {}) and measure in second.metrics.get(b, {}):
            yield measure, _of_examples(measure, first.predictions[a], second.predictions[b][order],
                                        first.targets, seed)  # fmt: skip


def _of_examples(
    name: str, first: "np.ndarray", second: "np.ndarray", targets: "np.ndarray", seed: int
) -> dict[str, Any]:
    """How a measure differs that is not a mean over examples, from both predictions [examples]."""
    import numpy as np

    from elasticlm.trainer.evaluation.glue_measures import WITHOUT_EACH, pseudo_values
    from elasticlm.trainer.evaluation.significance import resampled_difference, t_test_p

    measure, _ = WITHOUT_EACH[name]

    def both(rows: np.ndarray) -> tuple[float, float]:
        return measure(first[rows], targets[rows]), measure(second[rows], targets[rows])

    a, b = both(np.arange(len(targets)))
    interval, p = resampled_difference(both, len(targets), seed=seed)
    exists = np.isfinite(a) and np.isfinite(b)
    t_test = t_test_p(pseudo_values(name, first, targets), pseudo_values(name, second, targets)) if exists else None
    numbers = [value if np.isfinite(value) else None for value in (a, b, *interval, p)]
    return {"a": numbers[0], "b": numbers[1], "difference": numbers[2:5], "p": numbers[5], "t_test_p": t_test}
