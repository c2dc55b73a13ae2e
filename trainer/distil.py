"""``elasticlm distil``: train every level on plain text to keep the teacher's attention relations."""

import argparse

import torch

from elasticlm import command
from elasticlm.command import say
from elasticlm.errors import InputError
from elasticlm.model.elastic_model import ElasticModel
from elasticlm.model.teacher import load_teacher
from elasticlm.trainer import mixture
from elasticlm.trainer.checkpoints import Checkpoints
from elasticlm.trainer.finetune import print_report
from elasticlm.trainer.loop import train
from elasticlm.trainer.loop_options import LoopOptions, add_data_options, add_options, at_least, options_of
from elasticlm.trainer.mixture import Exclusion
from elasticlm.trainer.objectives import Relations
from elasticlm.trainer.processes import Processes
from elasticlm.trainer.training_texts import TokenizedTexts

DEFAULTS = {"distil": LoopOptions(batch_size=32, chunk_size=32, levels_per_step="3")}
SCALES = ("sqrt", "plain")


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = command.parser("elasticlm distil", __doc__.partition(": ")[2])
    parser.add_argument("--model", required=True, metavar="DIR", help="elastic model to start from (see prune)")
    parser.add_argument("--teacher", required=True, help="BERT encoder: a folder, or a name on the Hugging Face hub")
    add_data_options(parser, "text:FILE (a paragraph a line), or the passages of beir:DIR, hf:NAME[/CONFIG] or pydoc")
    parser.add_argument("--max-tokens", type=int, default=128, metavar="N", help="length limit of a text, in tokens")
    parser.add_argument("--relation-heads", type=int, default=32, metavar="R", help="heads that queries, keys and "
                        "values are split into anew; must divide the hidden size")  # fmt: skip
    parser.add_argument("--relation-scale", default="sqrt", choices=SCALES, help="relations are divided by the width "
                        "of a relation head (plain) or its root (sqrt)")  # fmt: skip
    add_options(parser, DEFAULTS)
    args = parser.parse_args(argv)
    at_least(args, 3, "max_tokens")
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    options = options_of(args, DEFAULTS["distil"])
    checkpoints = Checkpoints(args.output, resume=args.resume, overwrite=args.overwrite)
    torch.set_num_threads(options.threads or torch.get_num_threads())
    processes = Processes(options.precision)
    model, teacher = ElasticModel.from_pretrained(args.model), load_teacher(args.teacher)
    check(teacher, model, args.relation_heads)
    wanted = options.max_steps * options.batch_size + options.dev_examples
    exclusion = Exclusion(args.exclude)
    drawn = mixture.texts(args.data, args.split, wanted, options.seed, exclusion)
    texts = TokenizedTexts.of(teacher, drawn, "passage", args.max_tokens)
    say(f"distil: {len(texts)} texts")
    objective = Relations(model, teacher.to(processes.device), texts, relation_heads=args.relation_heads,
                          scale=args.relation_scale, processes=processes, chunk_size=options.chunk_size)  # fmt: skip
    names = ("data", "split", "exclude", "max_tokens", "relation_heads", "relation_scale")
    settings = {name: getattr(args, name) for name in names}
    settings |= {"model": model.fingerprint(), "teacher": teacher.fingerprint()}
    report = train(objective, options, checkpoints, settings, facts=exclusion.report())
    if processes.is_main:
        print_report(args.output, report)


def check(teacher: ElasticModel, model: ElasticModel, relation_heads: int) -> None:
    """Raise InputError unless the teacher's relations can teach this model."""
    hidden = teacher.config.hidden_size
    if hidden != model.config.hidden_size or teacher.config.vocab_size != model.config.vocab_size:
        raise InputError(
            f"--teacher has hidden size {hidden} and {teacher.config.vocab_size} words, the model "
            f"{model.config.hidden_size} and {model.config.vocab_size}: it is of another family"
        )
    if relation_heads < 1 or hidden % relation_heads:
        raise InputError(f"--relation-heads {relation_heads}: must divide the hidden size, {hidden}")
    if teacher.structures[teacher.structures.largest].heads[-1] * teacher.config.head_size != hidden:
        raise InputError("--teacher must have all heads of its last layer")
