"""``elasticlm baseline``: train a system that the paper compares with, see elasticlm.trainer.baselines."""

import argparse
from dataclasses import asdict

from elasticlm import command
from elasticlm.arguments import positive_int
from elasticlm.errors import InputError
from elasticlm.files import claim
from elasticlm.hints import unknown
from elasticlm.model.structure import parse_levels
from elasticlm.trainer.baselines import BASELINES, Baseline
from elasticlm.trainer.distil import DEFAULTS as TEXT_DEFAULTS
from elasticlm.trainer.distil import add_text_options
from elasticlm.trainer.inputs import check_data, check_files, check_model
from elasticlm.trainer.loop_options import LoopOptions, add_data_options, add_options, options_of
from elasticlm.trainer.tasks import TASKS, TaskConfig, add_task_options

OWN_OPTIONS = {
    "dynabert": ("levels", "depths"),
    "moebert": ("level", "experts", "evaluate"),
    "early-exit": ("exits", "evaluate"),
}
"""Options that only some of them have."""


def parse_args(argv: list[str] | None) -> tuple[argparse.Namespace, TaskConfig | None, LoopOptions]:
    """Return the options, the task's configuration (None on plain text), and the loop's options.

    Raises InputError for values and combinations that are not possible.
    """
    parser = command.parser("elasticlm baseline", "Train a system that the paper compares with.")
    names = "; ".join(f"{name}: {found.summary}" for name, found in BASELINES.items())
    parser.add_argument("name", metavar="NAME", help=names)
    parser.add_argument("--task", help="what a task-specific system is trained for: classify, rerank or retrieve")
    parser.add_argument("--model", required=True, metavar="DIR", help="the student to start from (see prune); "
                        "lm-head and condenser: the teacher itself")  # fmt: skip
    add_data_options(parser, "as for finetune, or on plain text as for distil")
    add_task_options(parser)
    add_text_options(parser)
    parser.add_argument("--levels", help="dynabert: submodels, such as 100,50,30,15")
    parser.add_argument("--depths", help="dynabert: share of the layers that each submodel keeps, such as "
                        "1,1,0.67,0.67 (default: all layers)")  # fmt: skip
    parser.add_argument("--level", help="moebert: share of the parameters that a token runs through, in percent "
                        "(default: 50)")  # fmt: skip
    parser.add_argument("--experts", type=positive_int, metavar="N", help="moebert: experts in a layer (default: 4)")
    parser.add_argument("--exits", help="early-exit: layers behind which there is an exit, such as 2,4,6")
    parser.add_argument("--evaluate", nargs="+", metavar="SPLIT", help="moebert, early-exit: also measure these splits "
                        "of the first --data, as evaluate does, into SPLIT.json in the output (early-exit: exits by "
                        "confidence)")  # fmt: skip
    loops = {task: config.loop for task, config in TASKS.items()} | {"plain text": TEXT_DEFAULTS["distil"]}
    add_options(parser, loops)
    args = parser.parse_args(argv)
    if args.name not in BASELINES:
        raise InputError(unknown("baseline", args.name, BASELINES))
    baseline = BASELINES[args.name]
    _check(args, baseline)
    if not baseline.tasks:
        return args, None, options_of(args, TEXT_DEFAULTS["distil"])
    config = TASKS[args.task].of(args.task, args)
    return args, config, options_of(args, config.loop)


def main(argv: list[str] | None = None) -> None:
    """Entry point; elasticlm.trainer.baselines.training does the work."""
    args, config, options = parse_args(argv)
    check_model("--model", args.model)
    if args.teacher:
        check_model("--teacher", args.teacher)
    check_data([*args.data, *args.exclude])
    check_files(args)
    with claim(args.output, overwrite=args.overwrite):
        from elasticlm.trainer.baselines.training import train_baseline

        train_baseline(args, config, options)


def settings_of(args: argparse.Namespace, config: TaskConfig | None) -> dict[str, object]:
    """What a resumed run must agree in, besides the loop's options and the models."""
    names = ["name", "task", "data", "split", "exclude", "levels", "depths", "level", "experts", "exits"]
    if config is None:
        names += ["max_tokens", "relation_heads", "relation_scale"]
    return {name: getattr(args, name) for name in names} | ({} if config is None else asdict(config))


def _check(args: argparse.Namespace, baseline: Baseline) -> None:
    if baseline.tasks and args.task not in baseline.tasks:
        raise InputError(f"{args.name} needs --task {' or '.join(baseline.tasks)}")
    if not baseline.tasks and args.task:
        raise InputError(f"{args.name} is trained on plain text: leave out --task")
    others = {option for options in OWN_OPTIONS.values() for option in options}
    for option in sorted(others - set(OWN_OPTIONS.get(args.name, ()))):
        if getattr(args, option) is not None:
            raise InputError(f"--{option} does not go with {args.name}")
    trains_teacher = args.name in ("lm-head", "condenser", "early-exit")
    if trains_teacher == bool(args.teacher):
        raise InputError(f"{args.name} has no teacher: leave out --teacher" if trains_teacher
                         else f"{args.name} needs --teacher")  # fmt: skip
    if args.name == "dynabert":
        if not args.levels:
            raise InputError("dynabert needs --levels, such as 100,50,30,15")
        count = len(parse_levels(args.levels))
        if args.depths and len(numbers("--depths", args.depths)) != count:
            raise InputError(f"--depths {args.depths}: expected {count} numbers, one for each level")
    if args.name == "early-exit":
        if not args.exits:
            raise InputError("early-exit needs --exits, such as 2,4,6")
        if not all(layers.is_integer() and layers > 0 for layers in numbers("--exits", args.exits)):
            raise InputError(f"--exits {args.exits}: expected numbers of layers, such as 2,4,6")
    if args.evaluate and args.task != "classify":
        raise InputError("--evaluate is for --task classify; measure the exits of a retriever with elasticlm evaluate")


def numbers(option: str, text: str) -> list[float]:
    """Read numbers from a list with commas; raises InputError."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"{option} {text}: expected numbers with commas between them") from None
