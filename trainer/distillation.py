"""Relation distillation: every level is trained on plain text to keep the teacher's attention relations."""

import argparse

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
    wanted = options.max_steps * options.batch_size + options.dev_examples
    exclusion = Exclusion(args.exclude)
    drawn = mixture.texts(args.data, args.split, wanted, options.seed, exclusion)
    texts = TokenizedTexts.of(teacher, drawn, "passage", args.max_tokens)
    say(f"distil: {len(texts)} texts")
    objective = Relations(model, teacher.to(processes.device), texts, relation_heads=args.relation_heads,
                          scale=args.relation_scale, processes=processes, chunk_size=options.chunk_size)  # fmt: skip
    names = ("data", "split", "exclude", "max_tokens", "relation_heads", "relation_scale")
    settings = {name: getattr(args, name) for name in names}
    settings |= {"model": model.weights_fingerprint(), "teacher": teacher.fingerprint()}
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
