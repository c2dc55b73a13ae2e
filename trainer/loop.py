"""Algorithm 1 of ElasticLM, once, for every objective."""

import math
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim import AdamW, Muon, Optimizer

from elasticlm.command import progress, say
from elasticlm.errors import InputError
from elasticlm.machine import machine
from elasticlm.model import ElasticModel
from elasticlm.structure import Level, level_name
from trainer.checkpoints import Checkpoints, Losses
from trainer.objectives import Objective
from trainer.options import LoopOptions
from trainer.processes import Processes
from trainer.texts import BatchOrder

DEV_SHARE = 0.1  # at most this much of the examples is held out for the dev loss
DEV_STEP = 2**31  # what dev batches draw: nothing that a training step draws
WEIGHT_DECAY = 0.01


def train(
    objective: Objective,
    options: LoopOptions,
    checkpoints: Checkpoints,
    settings: Mapping[str, Any],
    *,
    sign: Callable[[ElasticModel], None] = lambda model: None,
) -> dict[str, Any]:
    """Train every level of ``objective.model`` and write the artifact.

    Everything drawn at random is a function of the seed and the step, so that a resumed run needs no more than weights,
    optimiser state and the number of steps done to go on bit for bit.

    Args:
        settings: what the run depends on besides the options (data, model, ...); a resumed run must agree.
        sign: called on the trained model before it is written, for what its config says of it.

    Returns:
        Dev losses before and after, steps, minutes.
    """
    processes, model = objective.processes, objective.model
    settings = dict(settings) | asdict(options) | {"precision": processes.precision}
    for free in ("threads", "checkpoint_every", "chunk_size", "dev_every"):
        settings.pop(free)
    rows = np.random.default_rng([options.seed, 3]).permutation(len(objective.lengths))
    held_out = min(options.dev_examples, int(DEV_SHARE * len(rows)))
    if held_out == 0 or len(rows) - held_out < processes.count:
        raise InputError(f"{len(rows)} training examples are too few to train and to hold out a tenth for the dev loss")
    dev_rows, train_rows = rows[:held_out], np.sort(rows[held_out:])
    order = BatchOrder(objective.lengths[train_rows], options.batch_size, options.seed)

    model.to(processes.device)
    if options.freeze_embeddings:
        model.encoder.embeddings.requires_grad_(False)
    modules = nn.ModuleDict({"model": model, "extra": objective.extra})
    parameters = [p for p in modules.parameters() if p.requires_grad and p.numel()]
    optimizers = make_optimizers(modules, options)
    losses = Losses()
    first, earlier_s = checkpoints.load(modules, optimizers, losses, settings)
    start = time.monotonic()

    def dev_losses(step: int) -> dict[Level, float]:
        found = evaluate(objective, dev_rows, options.batch_size)
        losses.add(step, "dev", found)
        say(f"step {step}: dev loss " + ", ".join(f"{level_name(k)} %: {v:.4f}" for k, v in found.items()))
        return found

    def save(step: int) -> None:
        if processes.is_main:
            checkpoints.save(step, modules, optimizers, losses, settings, earlier_s + time.monotonic() - start)

    if first:
        say(f"resuming at step {first} of {options.max_steps}")
    else:
        dev_losses(0)
    bar = progress(total=options.max_steps, desc="train", unit="step")
    bar.initial = bar.n = first  # steps of an earlier run are done, but say nothing about the speed of this one
    with _interruptions() as interrupted:
        for step in range(first, options.max_steps):
            factor = learning_rate_factor(step, options.max_steps, options.warmup, options.decay)
            for group in (group for optimizer in optimizers for group in optimizer.param_groups):
                group["lr"] = group["peak_lr"] * factor
            batch_rows = train_rows[order.rows(step)]
            levels = levels_of_step(model.levels, options.levels_per_step, options.seed, step)
            sums = accumulate_gradients(objective, batch_rows, step, levels)
            _sum_over_processes(parameters, processes)
            torch.nn.utils.clip_grad_norm_(parameters, options.clip)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            means = {level: loss / len(batch_rows) for level, loss in sums.items()}
            losses.add(step + 1, "train", means)
            if not all(map(math.isfinite, means.values())):
                raise InputError(f"step {step + 1}: the loss is no longer finite; try a smaller --lr")
            bar.set_postfix_str(
                " ".join(f"{level_name(level)}%:{loss:.3f}" for level, loss in means.items()), refresh=False
            )
            bar.update()
            done = step + 1
            if done == options.max_steps:
                break
            if options.dev_every and done % options.dev_every == 0:
                dev_losses(done)
            stop = bool(processes.sum(torch.tensor(float(interrupted()), device=processes.device)) > 0)
            if stop or done % options.checkpoint_every == 0:
                save(done)
            if stop:
                bar.close()
                say(f"stopped after step {done}; checkpoint in {checkpoints.folder}. To go on: {_resume_command()}")
                raise KeyboardInterrupt
    bar.close()
    dev_losses(options.max_steps)

    before, after = losses.dev()
    seconds = earlier_s + time.monotonic() - start
    report = {"dev_loss_before": before, "dev_loss_after": after, "steps": options.max_steps,
              "minutes": round(seconds / 60, 2), "settings": settings,
              "machine": machine(("torch", "transformers"))}  # fmt: skip
    sign(model)
    if processes.is_main:
        checkpoints.finish(model, losses, report)
    processes.wait()
    return report


def accumulate_gradients(
    objective: Objective, rows: np.ndarray, step: int, levels: Sequence[Level]
) -> dict[Level, float]:
    """Algorithm 1's inner loop: add the gradient of the mean over levels of the mean loss over these examples.

    For every level: forward, loss / levels, backward. Returns the summed loss of each level (over all processes).
    """
    weight = 1 / (len(levels) * len(rows))
    sums = dict.fromkeys(levels, torch.zeros((), device=objective.processes.device))
    for part in objective.parts(rows):
        batch = objective.batch(part, step)
        for level in levels:
            sums[level] = sums[level] + objective.backward(batch, level, weight)
        objective.finish(batch)
    return {level: objective.processes.sum(total).item() for level, total in sums.items()}


@torch.no_grad()
def evaluate(objective: Objective, rows: np.ndarray, batch_size: int) -> dict[Level, float]:
    """Mean loss of every level over these examples."""
    rows = rows[np.argsort(objective.lengths[rows], kind="stable")]
    sums = dict.fromkeys(objective.model.levels, torch.zeros((), device=objective.processes.device))
    for some in np.array_split(rows, math.ceil(len(rows) / batch_size)):
        for part in objective.parts(some):
            batch = objective.batch(part, DEV_STEP)
            for level in sums:
                sums[level] = sums[level] + objective.losses(batch, level).sum()
    return {level: objective.processes.sum(total).item() / len(rows) for level, total in sums.items()}


def levels_of_step(levels: Sequence[Level], per_step: str, seed: int, step: int) -> tuple[Level, ...]:
    """The levels that a step trains, largest first: all, or the smallest and some others drawn at random."""
    if per_step == "all" or int(per_step) >= len(levels):
        return tuple(levels)
    drawn = np.random.default_rng([seed, 0, step]).choice(len(levels) - 1, int(per_step) - 1, replace=False)
    return (*(levels[i] for i in sorted(drawn)), levels[-1])


def learning_rate_factor(step: int, max_steps: int, warmup: float, decay: str) -> float:
    """Share of the peak learning rate at a step: up in a line, then down to 0."""
    rising = max(1, round(warmup * max_steps))
    if step < rising:
        return (step + 1) / rising
    left = (max_steps - step) / (max_steps - rising + 1)
    return left if decay == "linear" else 0.5 * (1 - math.cos(math.pi * left))


def make_optimizers(modules: nn.Module, options: LoopOptions) -> list[Optimizer]:
    """AdamW for all, or Muon for the layers' matrices and AdamW for the rest. Groups remember their ``peak_lr``."""
    named = [(name, p) for name, p in modules.named_parameters() if p.requires_grad and p.numel()]
    matrices = [p for name, p in named if options.optimizer == "muon" and p.ndim == 2 and ".layers." in name]
    others = [p for _, p in named if not any(p is matrix for matrix in matrices)]
    optimizers: list[Optimizer] = [AdamW(others, lr=options.lr, weight_decay=WEIGHT_DECAY)]
    if matrices:
        optimizers.append(Muon(matrices, lr=options.muon_lr, weight_decay=WEIGHT_DECAY))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return optimizers


def _sum_over_processes(parameters: Sequence[nn.Parameter], processes: Processes) -> None:
    if processes.count == 1:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = processes.sum(torch.cat([gradient.flatten() for gradient in gradients]))
    for gradient, summed in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(summed.view_as(gradient))


@contextmanager
def _interruptions() -> Iterator[Callable[[], bool]]:
    """SIGINT and SIGTERM let the step in hand finish; a second one acts at once."""
    caught: list[int] = []

    def note(number: int, frame: Any) -> None:
        caught.append(number)
        signal.signal(number, before[number])
        say("stopping after this step")

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(caught)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _resume_command() -> str:
    words = ["python", "-m", "trainer", *sys.argv[1:]]
    return shlex.join([word for word in words if word not in ("--overwrite", "--resume")] + ["--resume"])
