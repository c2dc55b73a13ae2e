"""``elasticlm distil``: train every level on plain text to keep the teacher's attention relations."""

import argparse

from elasticlm import command
from elasticlm.arguments import at_least, positive_int
from elasticlm.files import claim
from elasticlm.trainer.inputs import check_data, check_model
from elasticlm.trainer.loop_options import (
    LoopOptions,
    add_data_options,
    add_options,
    options_of,
)

DEFAULTS = {"distil": LoopOptions(batch_size=32, chunk_size=32, levels_per_step="3")}
SCALES = ("sqrt", "plain")
DEFAULT_RELATION_HEADS = 32


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = command.parser(
        "elasticlm distil", "Train every level on plain text to keep the teacher's attention relations."
    )
    parser.add_argument("--model", required=True, metavar="DIR", help="elastic model to start from (see prune)")
    parser.add_argument("--teacher", required=True, help="BERT encoder: a folder, or a name on the Hugging Face hub")
    add_data_options(
        parser, "text:FILE (one paragraph per line), or the passages of beir:DIR, hf:NAME[/CONFIG] or pydoc"
    )
    add_text_options(parser)
    add_options(parser, DEFAULTS)
    return parser.parse_args(argv)


def add_text_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of training on plain text."""
    parser.add_argument(
        "--max-tokens", type=at_least(3), default=128, metavar="N", help="length limit of a text, in tokens"
    )
    parser.add_argument("--relation-heads", type=positive_int, default=DEFAULT_RELATION_HEADS, metavar="R",
                        help="heads that queries, keys and values are split into anew; must divide the hidden size"
                        )  # fmt: skip
    parser.add_argument("--relation-scale", default="sqrt", choices=SCALES, help="relations are divided by the width "
                        "of a relation head (plain) or its root (sqrt)")  # fmt: skip


def main(argv: list[str] | None = None) -> None:
    """Entry point; the work is in elasticlm.trainer.distillation."""
    args = parse_args(argv)
    options = options_of(args, DEFAULTS["distil"])
    check_model("--model", args.model)
    check_model("--teacher", args.teacher)
    check_data([*args.data, *args.exclude])
    with claim(args.output, overwrite=args.overwrite):
        from elasticlm.trainer.distillation import distil

        distil(args, options)
