"""Train a baseline: read its data, load its teacher, make its objective, run the common loop."""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from elasticlm.errors import InputError
from elasticlm.model.configuration import Passages
from elasticlm.model.download import resolve_model
from elasticlm.model.elastic_model import ElasticModel
from elasticlm.model.structure import parse_level, parse_levels
from elasticlm.model.teacher import load_model
from elasticlm.trainer.baseline import numbers, settings_of
from elasticlm.trainer.baselines import BASELINES
from elasticlm.trainer.checkpoints import Checkpoints
from elasticlm.trainer.distillation import check, tokenized
from elasticlm.trainer.finetune import print_report
from elasticlm.trainer.loop import train
from elasticlm.trainer.loop_options import LoopOptions
from elasticlm.trainer.mixture import Exclusion
from elasticlm.trainer.objectives.base import Objective
from elasticlm.trainer.processes import Processes
from elasticlm.trainer.task_objectives import Training, build_objective, fine_tuned_teacher
from elasticlm.trainer.tasks import ClassifyConfig, RerankConfig, TaskConfig


def train_baseline(args: argparse.Namespace, config: TaskConfig | None, options: LoopOptions) -> None:
    """Train what the options name and write it."""
    checkpoints = Checkpoints(args.output, resume=args.resume, overwrite=args.overwrite)
    torch.set_num_threads(options.threads or torch.get_num_threads())
    processes, exclusion = Processes(options.precision), Exclusion(args.exclude)
    model = load_model(args.model)
    settings = settings_of(args, config) | {"model": model.weights_fingerprint()}
    make = partial(_on_texts, exclusion=exclusion) if config is None else partial(_on_task, config, exclusion=exclusion)
    objective = make(args, options, model, processes)
    report = train(objective, options, checkpoints, settings, sign=sign, facts=exclusion.report())
    if processes.is_main:
        print_report(args.output, report)


def sign(trained: ElasticModel) -> None:
    """Note which vectors the queries of a student go with that encodes its own passages."""
    if trained.config.passages.encoder == "largest":
        trained.config.passages = Passages("largest", trained.fingerprint())


def _on_task(
    config: TaskConfig, args: argparse.Namespace, options: LoopOptions, model: ElasticModel, processes: Processes, *,
    exclusion: Exclusion,
) -> Objective:  # fmt: skip
    """A task-specific baseline over the task's objective, which has labels alone."""
    run = Training(name=args.model, model=model, data=args.data, split=args.split, options=options,
                   exclusion=exclusion, processes=processes)  # fmt: skip
    teacher = getattr(config, "teacher", None)
    if isinstance(config, ClassifyConfig | RerankConfig):
        config = replace(config, teacher=None)
    task: Any = build_objective(config, run)[0]
    own: dict[str, Any] = {}
    if teacher:
        own["teacher"] = fine_tuned_teacher(teacher, task.model, processes, any_width=True)
    match args.name:
        case "dynabert":
            levels = parse_levels(args.levels)
            own |= {
                "levels": levels,
                "depths": numbers("--depths", args.depths) if args.depths else [1.0] * len(levels),
            }
        case "moebert":
            own |= {"level": parse_level(args.level or 50), "experts": args.experts or 4, "seed": options.seed}
        case "early-exit":
            own["exits"] = exits_of(args.exits, task.model)
        case "simtinybert":
            own["seed"] = options.seed
    if args.evaluate:
        own["measured"] = [(args.data[0], split) for split in args.evaluate]
    return _kind(args.name)(task, **own)


def _on_texts(
    args: argparse.Namespace, options: LoopOptions, model: ElasticModel, processes: Processes, *, exclusion: Exclusion
) -> Objective:
    """A baseline on plain text."""
    teacher = load_model(args.teacher) if args.teacher else model
    teacher = teacher.at(teacher.structures.largest).to(processes.device)
    texts, teacher_texts = tokenized(args, options, model, teacher, exclusion)
    own: dict[str, Any] = {"processes": processes, "chunk_size": options.chunk_size, "seed": options.seed}
    if args.teacher:
        own["teacher"] = teacher
    if args.name in ("minilm", "condenser-head"):
        check(teacher, model, args.relation_heads)
        own |= {"relation_heads": args.relation_heads, "scale": args.relation_scale, "teacher_texts": teacher_texts}
    elif teacher_texts is not None:
        raise InputError(f"--teacher has another vocabulary than the model, which {args.name} cannot match")
    match args.name:
        case "lm-head" | "condenser":
            own["source"] = args.model
        case "lm-distil":
            from elasticlm.trainer.baselines.masked_lm import load_head

            own["head"] = load_head(teacher, args.teacher)
        case "condenser-head":
            from elasticlm.trainer.baselines.condenser import HEAD_FILE

            own["head_file"] = Path(resolve_model(args.teacher)) / HEAD_FILE
    return _kind(args.name)(model, texts=texts, **own)


def exits_of(text: str, model: ElasticModel) -> Sequence[int]:
    """Return the layers of --exits; raises InputError where the model has fewer."""
    exits = [int(layers) for layers in numbers("--exits", text)]
    if max(exits) > model.config.num_hidden_layers:
        raise InputError(f"--exits {text}: the model has {model.config.num_hidden_layers} layers")
    return exits


def _kind(name: str) -> Any:
    baseline = BASELINES[name]
    return getattr(import_module(f"elasticlm.trainer.baselines.{baseline.module}"), baseline.kind)
