"""``elasticlm prune``: rank a teacher's heads and neurons, nest the levels in it, write the artifact."""

import argparse

from elasticlm import command
from elasticlm.model.structure import parse_levels
from elasticlm.trainer.inputs import check_data, check_model
from elasticlm.trainer.loop_options import add_data_options, at_least, check_output, check_temperature


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = command.parser(
        "elasticlm prune", "Rank a teacher's heads and neurons, nest levels in it and write the artifact."
    )
    parser.add_argument("--teacher", required=True, help="BERT encoder: a folder, or a name on the Hugging Face hub; "
                        "or a reranker or classifier fine-tuned whole (prune --levels 100, then finetune)")  # fmt: skip
    add_data_options(parser, "beir:DIR, text:FILE, hf:NAME[/CONFIG] or pydoc; of a classifier glue:DIR")
    parser.add_argument("--levels", default="100,50,30,20,10,5", help="percentages of the prunable parameters to keep; "
                        "100 keeps the whole teacher too, without it the largest level is cut")  # fmt: skip
    parser.add_argument("--score-loss", choices=("contrastive", "mlm", "task", "random"),
                        help="loss that heads and neurons are scored by: contrastive (queries against the passages of "
                        "their batch; the default of encoders), mlm (masked tokens, for teachers with that head), "
                        "task (the loss that a reranker or classifier was fine-tuned with; theirs), or random: no "
                        "loss, the baseline of units at random")  # fmt: skip
    parser.add_argument("--fresh-weights", action="store_true", help="start the layers from random weights, keep the "
                        "teacher's embeddings: a baseline")  # fmt: skip
    parser.add_argument("--max-examples", type=int, default=2048, metavar="N", help="examples scored, drawn at random")
    parser.add_argument("--batch-size", type=int, default=64, metavar="N", help="examples a batch")
    parser.add_argument(
        "--max-tokens", type=int, default=256, metavar="N", help="length limit of a passage or text scored, in tokens"
    )
    parser.add_argument(
        "--temperature", type=float, help="of the contrastive loss (default: .05 where vectors have length 1, else 1)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the examples and masks drawn")
    parser.add_argument("--threads", type=int, default=0, help="threads for PyTorch; 0: as it chooses")
    parser.add_argument("--output", required=True, metavar="DIR", help="artifact folder to write")
    parser.add_argument("--overwrite", action="store_true", help="replace the output")
    args = parser.parse_args(argv)
    at_least(args, 1, "max_examples")
    at_least(args, 2, "batch_size")
    at_least(args, 3, "max_tokens")
    check_temperature(args)
    return args


def main(argv: list[str] | None = None) -> None:
    """Entry point; the work is in elasticlm.trainer.pruning."""
    args = parse_args(argv)
    levels = parse_levels(args.levels)
    check_output(args)
    check_model("--teacher", args.teacher)
    check_data([*args.data, *args.exclude])
    from elasticlm.trainer.pruning import prune

    prune(args, levels)
