"""The options of the training loop, which ``distil`` and ``finetune`` share."""

import argparse
import ast
import inspect
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from typing import Any

from elasticlm.errors import InputError

PRECISIONS = ("auto", "bf16", "fp32")
OPTIMIZERS, DECAYS = ("adamw", "muon"), ("linear", "cosine", "trapezoid")
TEACHERS_DROPOUT = "teacher"


@dataclass(frozen=True, kw_only=True)
class LoopOptions:
    """Options of the training loop; the data and the loss are options of the objective."""

    max_steps: int = 1000
    """optimiser steps"""
    minutes: float = 0
    """train for about so many minutes: a few steps are timed first, and as many are done as fit, at most --max-steps;
    with --decay trapezoid the number is corrected while the learning rate is constant; 0: all of them"""
    batch_size: int = 128
    """examples per step, over all processes"""
    chunk_size: int = 128
    """examples whose activations are in memory at once; a smaller value saves memory and does not change the result,
    except that --dropout drops other values"""
    lr: float = 5e-4
    """peak learning rate of AdamW"""
    muon_lr: float = 3e-3
    """peak learning rate of Muon"""
    optimizer: str = "adamw"
    """adamw, or muon: Muon for the matrices of the layers, AdamW for the rest"""
    levels_per_step: str = "all"
    """levels trained per step: all (Algorithm 1 of the paper); 2: the smallest level and a random one; a larger number:
    the largest level and random others; largest: only the largest level, which degrades the others (a baseline)"""
    level_weights: str = "1"
    """loss weights of the levels, largest level first; the last weight applies to all further levels: 6,2,1"""
    warmup: float = 0.05
    """share of the steps in which the learning rate rises"""
    decay: str = "linear"
    """how the learning rate falls to 0 after the warmup: linear, cosine, or trapezoid: constant, then linear over the
    last two fifths of the steps; before that, a stopped run can be resumed with another --max-steps"""
    weight_decay: float = 0.01
    """weight decay of matrices and embeddings; biases and norms have none"""
    clip: float = 1.0
    """maximum norm of the gradient; 0: no maximum"""
    dropout: str = "0"
    """share of the values that are dropped in training where Hugging Face's class of the encoder drops them, such as
    attention probabilities and outputs of blocks; teacher: the rates of the teacher's configuration; 0: none"""
    freeze_embeddings: bool = False
    """do not train the embeddings"""
    precision: str = "auto"
    """bf16, fp32, or auto: bf16 if the processor supports it natively"""
    dev_examples: int = 256
    """examples held out for the dev loss; at most a tenth of all examples"""
    dev_every: int = 0
    """steps between dev losses; 0: a tenth of the steps"""
    seed: int = 0
    """seed of all random choices"""
    threads: int = 0
    """threads for PyTorch; 0: PyTorch's default"""
    checkpoint_every: int = 100
    """steps between checkpoints"""

    def __post_init__(self) -> None:
        for name in (
            "max_steps",
            "batch_size",
            "chunk_size",
            "lr",
            "muon_lr",
            "dev_examples",
            "checkpoint_every",
        ):
            if not getattr(self, name) > 0:
                raise InputError(f"{flag(name)}: expected more than 0, not {getattr(self, name)}")
        for name in ("minutes", "weight_decay", "clip"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"{flag(name)}: expected 0 or more, not {getattr(self, name)}")
        for name, allowed in (("optimizer", OPTIMIZERS), ("decay", DECAYS), ("precision", PRECISIONS)):
            if getattr(self, name) not in allowed:
                raise InputError(f"{flag(name)} {getattr(self, name)}: expected one of {', '.join(allowed)}")
        number = self.levels_per_step.isdigit() and int(self.levels_per_step) > 0
        if self.levels_per_step not in ("all", "largest") and not number:
            raise InputError(f"--levels-per-step {self.levels_per_step}: expected all, largest or a number of levels")
        if not all(_positive(weight) for weight in self.level_weights.split(",")):
            raise InputError(f"--level-weights {self.level_weights}: expected numbers above 0, such as 6,2,1")
        if self.dropout != TEACHERS_DROPOUT and not _share(self.dropout):
            raise InputError(f"--dropout {self.dropout}: expected {TEACHERS_DROPOUT}, or a share from 0 to below 1")
        if not 0 <= self.warmup < 1:
            raise InputError(f"--warmup {self.warmup}: expected a share from 0 to below 1")


def add_options(parser: argparse.ArgumentParser, defaults: Mapping[str, LoopOptions]) -> None:
    """Add the options of the loop, whose defaults may differ by task, and the output options to a command."""
    documented = docstrings(LoopOptions)
    for field in fields(LoopOptions):
        values = {task: getattr(options, field.name) for task, options in defaults.items()}
        same = len(set(values.values())) == 1
        shown = str(next(iter(values.values()))) if same else ", ".join(f"{v} for {task}" for task, v in values.items())
        kind: dict[str, Any] = {"type": field.type, "metavar": field.name.rsplit("_")[-1].upper()}
        if field.type is bool:
            kind = {"action": argparse.BooleanOptionalAction}
        # options_of() fills in the default, because it depends on the task.
        parser.add_argument(flag(field.name), default=None, help=f"{documented[field.name]} (default: {shown})", **kind)
    parser.add_argument("--output", required=True, metavar="DIR", help="artifact folder to write")
    parser.add_argument("--overwrite", action="store_true", help="replace the output, and discard an unfinished run")
    parser.add_argument("--resume", action="store_true", help="continue from the last checkpoint of this output")


def add_data_options(parser: argparse.ArgumentParser, specs: str) -> None:
    """Add the options for training data: one or more data specs, their split, and the data sets to exclude."""
    parser.add_argument("--data", required=True, nargs="+", metavar="SPEC", help=f"{specs}; several specs are sampled "
                        "in turn")  # fmt: skip
    parser.add_argument("--split", default="train", help="split of the data")
    parser.add_argument("--exclude", nargs="+", default=[], metavar="SPEC", help="evaluation sets: training texts that "
                        "share ten consecutive words with any of their passages or queries are dropped")  # fmt: skip


def options_of(args: argparse.Namespace, defaults: LoopOptions) -> LoopOptions:
    """Return the loop options of a command line, with the defaults of its task."""
    given = {field.name: getattr(args, field.name) for field in fields(LoopOptions)}
    return LoopOptions(**(asdict(defaults) | {name: value for name, value in given.items() if value is not None}))


def flag(name: str) -> str:
    """Return the option of a setting: ``max_steps`` -> ``--max-steps``."""
    return "--" + name.replace("_", "-")


def _positive(number: str) -> bool:
    try:
        return 0 < float(number) < float("inf")
    except ValueError:
        return False


def _share(number: str) -> bool:
    try:
        return 0 <= float(number) < 1
    except ValueError:
        return False


def docstrings(*kinds: type) -> dict[str, str]:
    """Return the docstrings of the fields of these dataclasses by field name; earlier classes take precedence."""
    texts: dict[str, str] = {}
    for kind in reversed(kinds):
        body = ast.parse(inspect.cleandoc("\n" + inspect.getsource(kind))).body[0].body  # type: ignore[attr-defined]
        texts |= {
            str(getattr(field.target, "id", "")): str(getattr(text.value, "value", ""))
            for field, text in pairwise(body)
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr)
        }
    return texts
