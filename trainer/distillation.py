"""Relation distillation: every level is trained on plain text to keep the teacher's attention relations."""

import argparse
from collections.abc import Iterator
from itertools import islice

import numpy as np
import torch

from elasticlm.command import say
from elasticlm.errors import InputError
from elasticlm.model.elastic_model import ElasticModel
from elasticlm.model.teacher import teacher_of
from elasticlm.trainer import mixture
from elasticlm.trainer.checkpoints import Checkpoints
from elasticlm.trainer.finetune import print_report
from elasticlm.trainer.loop import train
from elasticlm.trainer.loop_options import LoopOptions
from elasticlm.trainer.mixture import Exclusion
from elasticlm.trainer.objectives.relations import Relations
from elasticlm.trainer.processes import Processes
from elasticlm.trainer.training_texts import TokenizedTexts


def distil(args: argparse.Namespace, options: LoopOptions) -> None:
    """Train what the options name and write the artifact."""
    checkpoints = Checkpoints(args.output, resume=args.resume, overwrite=args.overwrite)
    torch.set_num_threads(options.threads or torch.get_num_threads())
    processes = Processes(options.precision)
    model = ElasticModel.from_pretrained(args.model)
    teacher = teacher_of(model, args.teacher)
    teacher = teacher.at(teacher.structures.largest)
    check(teacher, model, args.relation_heads)
    exclusion = Exclusion(args.exclude)
    texts, teacher_texts = tokenized(args, options, model, teacher, exclusion)
    objective = Relations(model, teacher.to(processes.device), texts, teacher_texts=teacher_texts,
                          relation_heads=args.relation_heads, scale=args.relation_scale, processes=processes,
                          chunk_size=options.chunk_size, seed=options.seed)  # fmt: skip
    names = ("data", "split", "exclude", "max_tokens", "relation_heads", "relation_scale")
    settings = {name: getattr(args, name) for name in names}
    settings |= {"model": model.weights_fingerprint(), "teacher": teacher.fingerprint()}
    report = train(objective, options, checkpoints, settings, facts=exclusion.report())
    if processes.is_main:
        print_report(args.output, report)


def tokenized(
    args: argparse.Namespace, options: LoopOptions, model: ElasticModel, teacher: ElasticModel, exclusion: Exclusion
) -> tuple[TokenizedTexts, TokenizedTexts | None]:
    """Return the training texts as the student sees them, and as the teacher does if it has another tokenizer.

    Raises InputError where the two split a text into different numbers of tokens: token by token, nothing would match.
    """
    wanted = options.max_steps * options.batch_size + options.dev_examples

    def drawn() -> Iterator[str]:
        return mixture.texts(args.data, args.split, wanted, options.seed, exclusion)

    texts = TokenizedTexts.of(model, drawn(), "passage", args.max_tokens)
    say(f"{len(texts):,} texts")
    if teacher.tokenizer.get_vocab() == model.tokenizer.get_vocab():
        return texts, None
    theirs = TokenizedTexts.of(teacher, drawn(), "passage", args.max_tokens)
    if (apart := np.flatnonzero(theirs.lengths != texts.lengths)).size:
        first = int(apart[0])
        text = next(islice(drawn(), first, None))
        raise InputError(f"--teacher splits texts otherwise than the model, such as {text[:60]!r} into "
                         f"{theirs.lengths[first]} tokens instead of {texts.lengths[first]}; relations of tokens need "
                         "the same pieces")  # fmt: skip
    return texts, theirs


def check(teacher: ElasticModel, model: ElasticModel, relation_heads: int) -> None:
    """Raise InputError unless the teacher's relations can teach this model."""
    for whose, each in (("the teacher", teacher), ("the model", model)):
        hidden = each.config.hidden_size
        if relation_heads < 1 or hidden % relation_heads:
            raise InputError(f"--relation-heads {relation_heads}: must divide the hidden size of {whose}, {hidden}")
    if teacher.structures[teacher.structures.largest].heads[-1] != teacher.config.num_attention_heads:
        raise InputError("--teacher must have all heads of its last layer")
