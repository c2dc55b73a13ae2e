"""The options that distil and finetune share: how to train, whatever it is."""

import argparse
import ast
import inspect
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from typing import Any

from elasticlm.errors import InputError
from elasticlm.files import refuse_existing

PRECISIONS = ("auto", "bf16", "fp32")
OPTIMIZERS, DECAYS = ("adamw", "muon"), ("linear", "cosine", "trapezoid")


@dataclass(frozen=True, kw_only=True)
class LoopOptions:
    """How to train; what to train on is the objective's."""

    max_steps: int = 1000
    """optimiser steps"""
    batch_size: int = 128
    """examples per step, over all processes"""
    chunk_size: int = 128
    """examples whose activations are held at once; smaller saves memory, changes nothing else"""
    lr: float = 5e-4
    """peak learning rate of AdamW"""
    muon_lr: float = 3e-3
    """peak learning rate of Muon"""
    optimizer: str = "adamw"
    """adamw, or muon: Muon for the matrices of the layers, AdamW for the rest"""
    levels_per_step: str = "all"
    """all (Algorithm 1 as printed); 2: the smallest level and another at random; a larger number: the largest and
    others at random; largest: that level alone, which ruins the others (a baseline)"""
    level_weights: str = "1"
    """weights of the levels' losses, largest level first, the last for all that follow: 6,2,1"""
    warmup: float = 0.05
    """share of the steps in which the learning rate rises"""
    decay: str = "linear"
    """how the learning rate falls to 0 afterwards: linear, cosine, or trapezoid: in the last two fifths of the steps;
    until then a run that was stopped may be resumed with another --max-steps"""
    clip: float = 1.0
    """largest norm of the gradient"""
    freeze_embeddings: bool = False
    """keep the embeddings as they are"""
    precision: str = "auto"
    """bf16, fp32, or auto: bf16 where the processor is made for it"""
    dev_examples: int = 256
    """examples held out for the dev loss, at most a tenth"""
    dev_every: int = 0
    """steps between dev losses; 0: a tenth of the steps"""
    seed: int = 0
    """of everything drawn at random"""
    threads: int = 0
    """threads for PyTorch; 0: as it chooses"""
    checkpoint_every: int = 100
    """steps between checkpoints"""

    def __post_init__(self) -> None:
        for name in (
            "max_steps",
            "batch_size",
            "chunk_size",
            "lr",
            "muon_lr",
            "clip",
            "dev_examples",
            "checkpoint_every",
        ):
            if not getattr(self, name) > 0:
                raise InputError(f"{flag(name)}: expected more than 0, not {getattr(self, name)}")
        for name, allowed in (("optimizer", OPTIMIZERS), ("decay", DECAYS), ("precision", PRECISIONS)):
            if getattr(self, name) not in allowed:
                raise InputError(f"{flag(name)} {getattr(self, name)}: expected one of {', '.join(allowed)}")
        number = self.levels_per_step.isdigit() and int(self.levels_per_step) > 0
        if self.levels_per_step not in ("all", "largest") and not number:
            raise InputError(f"--levels-per-step {self.levels_per_step}: expected all, largest or a number of levels")
        if not all(_positive(weight) for weight in self.level_weights.split(",")):
            raise InputError(f"--level-weights {self.level_weights}: expected numbers above 0, such as 6,2,1")
        if not 0 <= self.warmup < 1:
            raise InputError(f"--warmup {self.warmup}: expected a share from 0 to below 1")


def add_options(parser: argparse.ArgumentParser, defaults: Mapping[str, LoopOptions]) -> None:
    """Add the loop's options to a command, whose tasks may differ in their defaults; and those of its output."""
    documented = docstrings(LoopOptions)
    for field in fields(LoopOptions):
        values = {task: getattr(options, field.name) for task, options in defaults.items()}
        same = len(set(values.values())) == 1
        shown = str(next(iter(values.values()))) if same else ", ".join(f"{v} for {task}" for task, v in values.items())
        kind: dict[str, Any] = {"type": field.type, "metavar": field.name.rsplit("_")[-1].upper()}
        if field.type is bool:
            kind = {"action": argparse.BooleanOptionalAction}
        # The default is filled in by options_of(): here it would hide which task it belongs to.
        parser.add_argument(flag(field.name), default=None, help=f"{documented[field.name]} (default: {shown})", **kind)
    parser.add_argument("--output", required=True, metavar="DIR", help="artifact folder to write")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace the output, and start anew if it was unfinished"
    )
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint of this output")


def add_data_options(parser: argparse.ArgumentParser, specs: str) -> None:
    """Add what a training reads: one or several data specs, their split, and the sets that it must not see."""
    parser.add_argument("--data", required=True, nargs="+", metavar="SPEC", help=f"{specs}; several are drawn from "
                        "in turn")  # fmt: skip
    parser.add_argument("--split", default="train", help="split of the data")
    parser.add_argument("--exclude", nargs="+", default=[], metavar="SPEC", help="sets to evaluate on: training texts "
                        "that share ten words in a row with any of their passages or queries are dropped")  # fmt: skip


def check_output(args: argparse.Namespace) -> None:
    """Raise InputError where the output exists already and may not be replaced."""
    refuse_existing(args.output, overwrite=args.overwrite)


def options_of(args: argparse.Namespace, defaults: LoopOptions) -> LoopOptions:
    """The loop's options from a command line and the defaults of its task."""
    given = {field.name: getattr(args, field.name) for field in fields(LoopOptions)}
    return LoopOptions(**(asdict(defaults) | {name: value for name, value in given.items() if value is not None}))


def at_least(args: argparse.Namespace, minimum: int, *names: str) -> None:
    """Raise InputError for the first of these options that is given and smaller."""
    for name in names:
        value = getattr(args, name)
        if value is not None and value < minimum:
            raise InputError(f"{flag(name)}: expected {minimum} or more, not {value}")


def check_temperature(args: argparse.Namespace) -> None:
    """Raise InputError unless the temperature is above 0 or left to the default."""
    if args.temperature is not None and not args.temperature > 0:
        raise InputError(f"--temperature: expected more than 0, not {args.temperature}")


def flag(name: str) -> str:
    """The option of a setting: ``max_steps`` -> ``--max-steps``."""
    return "--" + name.replace("_", "-")


def _positive(number: str) -> bool:
    try:
        return 0 < float(number) < float("inf")
    except ValueError:
        return False


def docstrings(*kinds: type) -> dict[str, str]:
    """The docstring under each field of these dataclasses, by the field's name; the first class goes first."""
    texts: dict[str, str] = {}
    for kind in reversed(kinds):
        body = ast.parse(inspect.cleandoc("\n" + inspect.getsource(kind))).body[0].body  # type: ignore[attr-defined]
        texts |= {
            str(getattr(field.target, "id", "")): str(getattr(text.value, "value", ""))
            for field, text in pairwise(body)
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr)
        }
    return texts
