"""``elasticlm finetune``: train every level of an elastic model for a task."""

import argparse
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from elasticlm import command
from elasticlm.files import claim
from elasticlm.trainer.inputs import check_data, check_files, check_model
from elasticlm.trainer.loop_options import add_data_options, add_options, options_of
from elasticlm.trainer.tasks import TASKS, TaskConfig, add_task_options, task_named

if TYPE_CHECKING:
    from elasticlm.model.elastic_model import ElasticModel


def parse_args(argv: list[str] | None) -> tuple[argparse.Namespace, TaskConfig]:
    """Return the options and the configuration of the task. Raises InputError for invalid values."""
    parser = command.parser("elasticlm finetune", "Train every level of an elastic model for a task.")
    tasks = "; ".join(f"{task}: {config.summary}" for task, config in TASKS.items())
    parser.add_argument("--task", required=True, metavar="|".join(TASKS), help=tasks)
    parser.add_argument("--model", required=True, metavar="DIR", help="elastic model to start from (see prune), or a "
                        "teacher to be fine-tuned whole")  # fmt: skip
    add_data_options(parser, "beir:DIR, dpr:DIR, msmarco-docs:DIR, text:FILE, hf:NAME[/CONFIG] or pydoc; align: also "
                     "glue:DIR, for its sentences; classify: glue:DIR or hf:NAME[/CONFIG]")  # fmt: skip
    add_task_options(parser)
    add_options(parser, {task: config.loop for task, config in TASKS.items()})
    args = parser.parse_args(argv)
    return args, task_named(args.task).of(args.task, args)


def main(argv: list[str] | None = None) -> None:
    """Entry point."""
    args, config = parse_args(argv)
    options = options_of(args, config.loop)
    check_model("--model", args.model)
    check_data([*args.data, *args.exclude])
    for option, name in config.models.items():
        check_model(option, name)
    check_files(args)
    with claim(args.output, overwrite=args.overwrite):
        train_task(args, config, options)


def train_task(args: argparse.Namespace, config: TaskConfig, options: Any) -> None:
    """Train the model that the options describe; heavy imports begin here."""
    import torch

    from elasticlm.model.configuration import Calibration, Fusion, Passages
    from elasticlm.model.teacher import load_model
    from elasticlm.trainer.checkpoints import Checkpoints
    from elasticlm.trainer.loop import train
    from elasticlm.trainer.mixture import Exclusion
    from elasticlm.trainer.processes import Processes
    from elasticlm.trainer.task_objectives import Training, build_objective

    checkpoints = Checkpoints(args.output, resume=args.resume, overwrite=args.overwrite)
    torch.set_num_threads(options.threads or torch.get_num_threads())
    processes = Processes(options.precision)
    model = load_model(args.model)
    settings = {"task": args.task, "data": args.data, "split": args.split, "exclude": args.exclude}
    settings |= asdict(config) | {"model": model.weights_fingerprint()}
    exclusion = Exclusion(args.exclude)
    objective, passages = build_objective(config, Training(
        name=args.model, model=model, data=args.data, split=args.split, options=options, exclusion=exclusion,
        processes=processes,
    ))  # fmt: skip

    def sign(trained: "ElasticModel") -> None:
        trained.config.calibration, trained.config.fusion = Calibration(), Fusion()  # fitted to the old scores
        if trained.config.task == "embed":
            trained.config.passages = passages or Passages("largest", trained.fingerprint())

    report = train(objective, options, checkpoints, settings, sign=sign, facts=exclusion.report())
    if processes.is_main:
        print_report(args.output, report)


def print_report(output: str, report: Mapping[str, Any]) -> None:
    """Print the dev loss of every level before and after training: a table, and a last line of JSON for programs."""
    before, after = report["dev_loss_before"], report["dev_loss_after"]
    command.print_table([{"level": level, "dev loss before": before[level], "after": after[level]} for level in before])
    keys = ("steps", "minutes", "dev_loss_before", "dev_loss_after")
    command.print_result({"output": str(output)} | {key: report[key] for key in keys})
