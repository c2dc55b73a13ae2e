"""``elasticlm prune``: rank a teacher's heads and neurons, and write an artifact with nested levels."""

import argparse

from elasticlm import command
from elasticlm.arguments import at_least, non_negative_int, positive_float, positive_int
from elasticlm.errors import InputError
from elasticlm.files import claim
from elasticlm.model.structure import WHOLE, parse_levels
from elasticlm.trainer.inputs import add_teacher_options, check_data, check_model
from elasticlm.trainer.loop_options import add_data_options

LEVELS = "100,50,30,20,10,5"


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = command.parser(
        "elasticlm prune", "Rank a teacher's heads and neurons, and write an artifact with nested levels."
    )
    parser.add_argument("--teacher", required=True, help="encoder, reranker (a sequence classification model with one "
                        "label) or classifier (with several): a folder or a Hugging Face name")  # fmt: skip
    add_teacher_options(parser, "--teacher")
    add_data_options(parser, "beir:DIR, dpr:DIR, text:FILE, hf:NAME[/CONFIG] or pydoc; for a classifier: glue:DIR")
    parser.add_argument("--levels", help="percentages of the prunable parameters to keep; without 100, the whole "
                        f"teacher is not included (default: {LEVELS}; with --layers or --width 100)")  # fmt: skip
    parser.add_argument("--top", choices=("teacher", "shared"), help="level 100: the teacher itself, with weights of "
                        "its own that training does not change (default), or nested like the levels below, as in "
                        "the paper")  # fmt: skip
    parser.add_argument("--score-loss", choices=("contrastive", "mlm", "task", "random"),
                        help="loss by which heads and neurons are scored: contrastive (queries against the passages of "
                        "their batch; default for encoders), mlm (masked tokens; the teacher needs a masked language "
                        "model head), task (the fine-tuning loss; default for rerankers and classifiers), or "
                        "random (random scores, as a baseline)")  # fmt: skip
    parser.add_argument("--score-model", metavar="NAME", help="model of the teacher's sizes whose heads and neurons "
                        "are scored in place of the teacher's, a folder or a Hugging Face name; levels then keep the "
                        "teacher's units of the same places (default: the teacher)")  # fmt: skip
    parser.add_argument("--layers", type=positive_int, metavar="N", help="keep only so many of the teacher's layers, "
                        "evenly spaced and the last among them, as a baseline")  # fmt: skip
    parser.add_argument("--width", type=positive_int, metavar="DIM", help="start from an encoder of this hidden size "
                        "with random weights, and the teacher's number of heads, as a baseline")  # fmt: skip
    parser.add_argument("--fresh-weights", action="store_true", help="initialise the layers with random weights and "
                        "keep only the teacher's embeddings, as a baseline")  # fmt: skip
    parser.add_argument(
        "--max-examples", type=positive_int, default=2048, metavar="N", help="number of random examples to score"
    )
    parser.add_argument("--batch-size", type=at_least(2), default=64, metavar="N", help="examples per batch")
    parser.add_argument(
        "--max-tokens",
        type=at_least(3),
        default=256,
        metavar="N",
        help="length limit of a scored passage or text, in tokens",
    )
    parser.add_argument(
        "--temperature",
        type=positive_float,
        help="temperature of the contrastive loss (default: 0.05 if vectors have length 1, else 1)",
    )
    parser.add_argument("--seed", type=non_negative_int, default=0, help="seed for sampling examples and masks")
    parser.add_argument("--threads", type=non_negative_int, default=0, help="threads for PyTorch; 0: PyTorch's default")
    parser.add_argument("--output", required=True, metavar="DIR", help="artifact folder to write")
    parser.add_argument("--overwrite", action="store_true", help="replace the output")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Entry point; elasticlm.trainer.pruning does the work."""
    args = parse_args(argv)
    shaped = args.layers or args.width
    args.levels = args.levels or ("100" if shaped else LEVELS)
    levels = parse_levels(args.levels)
    if args.top == "teacher" and shaped:
        raise InputError("--top teacher: level 100 cannot be the teacher if it has other --layers or another --width")
    if args.top and (WHOLE not in levels or len(levels) == 1):
        raise InputError(f"--top {args.top}: --levels {args.levels} has no level 100 with smaller levels below it")
    check_model("--teacher", args.teacher)
    if args.score_model:
        if args.score_loss == "random" or levels == (WHOLE,):
            raise InputError("--score-model: no model is scored with --score-loss random, or for level 100 alone")
        check_model("--score-model", args.score_model)
    check_data([*args.data, *args.exclude])
    with claim(args.output, overwrite=args.overwrite):
        from elasticlm.trainer.pruning import prune

        prune(args, levels)
