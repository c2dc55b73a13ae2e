"""The training loop for all objectives: Algorithm 1 of ElasticLM."""

import math
import shlex
import signal
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim import AdamW, Muon, Optimizer

from elasticlm.command import progress, say
from elasticlm.errors import InputError
from elasticlm.machine import machine
from elasticlm.model.elastic_model import ElasticModel
from elasticlm.model.structure import Level, level_name
from elasticlm.trainer.checkpoints import Checkpoints, TrainingLog
from elasticlm.trainer.dropout_masks import dropout_of, dropping
from elasticlm.trainer.loop_options import LoopOptions
from elasticlm.trainer.muon import Fp32Muon
from elasticlm.trainer.objectives.base import Objective
from elasticlm.trainer.processes import Processes, has_native_bf16
from elasticlm.trainer.training_texts import BatchOrder

DEV_SHARE = 0.1  # maximum share of the examples that is held out for the dev loss
DEV_STEP = 2**31  # step number that seeds dev batches; larger than any training step
DEV_TIMES = 10  # measurements of the dev loss in a run
WARM_UP_STEPS, TIMED_STEPS = 2, 6  # of which the time of a step is the mean, with --minutes
LEAST_STEPS = 20
ESTIMATE_AFTER = 5  # steps before the remaining time is reported
RESUMED = (["recipe"], ["paper"])  # commands that go on by themselves when they are run again
DECAY_SHARE = 0.4  # share of the steps in which the learning rate falls, with --decay trapezoid


def train(
    objective: Objective,
    options: LoopOptions,
    checkpoints: Checkpoints,
    settings: Mapping[str, Any],
    *,
    sign: Callable[[ElasticModel], None] = lambda model: None,
    facts: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Train every level of ``objective.model``, but a teacher on top, and write the artifact.

    Everything drawn at random, dropout masks too, is a function of the seed and the step, so that a resumed run needs
    no more than weights, optimiser state and the number of steps done to go on bit for bit.

    Args:
        settings: what the run depends on besides the options (data, model, ...); a resumed run must agree.
        sign: called on the trained model before it is written, for what its config says of it.
        facts: what else the report says of the data.

    Returns:
        Dev losses before and after, steps, minutes.
    """
    processes, model = objective.processes, objective.model
    settings = dict(settings) | asdict(options) | {"precision": processes.precision}
    for changes_nothing in ("threads", "checkpoint_every", "chunk_size", "dev_every"):
        settings.pop(changes_nothing)
    rows = np.random.default_rng([options.seed, 3]).permutation(len(objective.lengths))
    held_out = min(options.dev_examples, int(DEV_SHARE * len(rows)))
    if held_out == 0 or len(rows) - held_out < processes.count:
        raise InputError(f"{len(rows)} training examples are too few to train and to hold out a tenth for the dev loss")
    dev_rows, train_rows = rows[:held_out], np.sort(rows[held_out:])

    model.to(processes.device)
    model.separate_top(embeddings=not options.freeze_embeddings)
    if options.freeze_embeddings:
        model.encoder.embeddings.requires_grad_(False)
    modules = nn.ModuleDict({"model": model, "extra": objective.extra})
    log, watch, dev_watch = TrainingLog(), Stopwatch(), Stopwatch()
    start = time.monotonic()

    def measure(step: int) -> None:
        with dev_watch("dev"):
            means = evaluate(objective, dev_rows, options.batch_size)
        for level, (loss, rr) in means.items():
            log.add(step, "dev", level, loss, rr)
        say(f"step {step}: dev loss " + ", ".join(f"{level_name(k)}%: {loss:.4f}" for k, (loss, _) in means.items()))

    earlier = checkpoints.settings()
    if earlier is None:
        measure(0)
    steps = Steps(objective, options, modules, train_rows)
    most = options.max_steps
    if options.minutes:
        fitted = earlier["max_steps"] if earlier else steps.fitting(options.minutes, dev_watch.mean_s("dev"))
        options = replace(options, max_steps=fitted)
        settings["max_steps"] = fitted
    max_steps, dev_every = options.max_steps, options.dev_every or max(1, options.max_steps // DEV_TIMES)
    optimizers = make_optimizers(modules, options)
    free = ("max_steps",) if options.decay == "trapezoid" else ()
    first, earlier_s = checkpoints.load(modules, optimizers, log, settings, free)
    if first >= max_steps:
        raise InputError(f"--max-steps {max_steps}: {checkpoints.folder} has done {first} already")

    def save(step: int) -> None:
        if processes.is_main:
            checkpoints.save(step, modules, optimizers, log, settings, earlier_s + time.monotonic() - start)

    if first:
        say(f"resuming at step {first} of {max_steps}")
    bar = progress(total=max_steps, desc="train", unit="step")
    # Steps of an earlier run count as done, but not for the speed estimate.
    bar.initial = bar.n = bar.last_print_n = done = first
    with _interruptions() as interrupted:
        while done < max_steps:
            means = steps.run(done, max_steps, optimizers, watch)
            for level, loss in means.items():
                log.add(done + 1, "train", level, loss)
            bar.set_postfix_str(
                " ".join(f"{level_name(level)}%:{loss:.3f}" for level, loss in means.items()), refresh=False
            )
            bar.update()
            done += 1
            if done == max_steps:
                break
            if done == first + ESTIMATE_AFTER:
                devs = max_steps // dev_every - done // dev_every + 1
                left_s = (max_steps - done) * watch.mean_s("step") + devs * dev_watch.mean_s("dev")
                say(f"about {left_s / 60:.1f} minutes for the remaining {max_steps - done} steps")
            if done % dev_every == 0:
                measure(done)
                if options.minutes and options.decay == "trapezoid":
                    left_s = 60 * options.minutes - (earlier_s + time.monotonic() - start) - dev_watch.mean_s("dev")
                    times = torch.tensor([left_s, watch.mean_s("step") + dev_watch.mean_s("dev") / dev_every])
                    left_s, step_s = (processes.sum(times.to(processes.device)) / processes.count).tolist()
                    fitted = corrected_steps(done, max_steps, int(left_s / step_s), options.warmup)
                    bar.total = settings["max_steps"] = max_steps = min(most, fitted)
            stop = bool(processes.sum(torch.tensor(float(interrupted()), device=processes.device)) > 0)
            if stop or done % options.checkpoint_every == 0:
                save(done)
            if stop:
                bar.close()
                say(f"stopped after step {done}; checkpoint in {checkpoints.folder}. To resume: {_resume_command()}")
                raise KeyboardInterrupt
    bar.close()
    measure(max_steps)

    before, after = log.dev()
    seconds = earlier_s + time.monotonic() - start
    report = {"dev_loss_before": before, "dev_loss_after": after, "steps": max_steps,
              "minutes": round(seconds / 60, 2), "step_ms": watch.report(), "settings": settings,
              "machine": machine(("torch", "transformers")), **(facts or {})}  # fmt: skip
    sign(model)
    if processes.is_main:
        checkpoints.finish(objective.save, log, report)
    processes.wait()
    return report


class Steps:
    """The steps of a run: which rows and levels form one, its gradients, and what the optimisers make of them.

    Args:
        modules: what is trained.
        rows: the training examples, IntArray [examples].
    """

    def __init__(self, objective: Objective, options: LoopOptions, modules: nn.Module, rows: np.ndarray) -> None:
        self._objective, self._options, self._modules, self._rows = objective, options, modules, rows
        self._levels = objective.model.trained_levels
        self._weights = level_weights(self._levels, options.level_weights)
        self._dropout = dropout_of(options.dropout, objective.model)
        self._order = BatchOrder(objective.lengths[rows], options.batch_size, options.seed)
        self._parameters = [p for p in modules.parameters() if p.requires_grad and p.numel()]

    def run(self, step: int, max_steps: int, optimizers: Sequence[Optimizer], watch: "Stopwatch") -> dict[Level, float]:
        """Do one step; return each level's mean loss. Raises InputError if a loss is no longer finite."""
        options, processes = self._options, self._objective.processes
        factor = learning_rate_factor(step, max_steps, options.warmup, options.decay)
        for group in (group for optimizer in optimizers for group in optimizer.param_groups):
            group["lr"] = group["peak_lr"] * factor
        rows = self._rows[self._order.rows(step)]
        levels = levels_of_step(self._levels, options.levels_per_step, options.seed, step)
        with watch("step"):
            weights = {level: self._weights[level] for level in levels}
            with dropping(self._objective.model, self._dropout, options.seed, step, processes.rank):
                sums = accumulate_gradients(self._objective, rows, step, weights, watch)
            with watch("optimizer"):
                _sum_over_processes(self._parameters, processes)
                if options.clip:
                    torch.nn.utils.clip_grad_norm_(self._parameters, options.clip)
                for optimizer in optimizers:
                    optimizer.step()
                    optimizer.zero_grad()
        means = {level: loss / len(rows) for level, loss in sums.items()}
        if not all(map(math.isfinite, means.values())):
            raise InputError(f"step {step + 1}: the loss is no longer finite; try a smaller --lr")
        return means

    def fitting(self, minutes: float, dev_s: float) -> int:
        """Return how many steps fit into so many minutes, at most the options' number: times a few, and undoes them.

        Args:
            dev_s: time of one measurement of the dev loss, in s.
        """
        processes, most = self._objective.processes, self._options.max_steps
        before = [parameter.detach().clone() for parameter in self._parameters]
        optimizers, watch = make_optimizers(self._modules, self._options), Stopwatch()
        for step in range(WARM_UP_STEPS + TIMED_STEPS):
            self.run(step, most, optimizers, Stopwatch() if step < WARM_UP_STEPS else watch)
        with torch.no_grad():
            for parameter, value in zip(self._parameters, before, strict=True):
                parameter.copy_(value)
        seconds = torch.tensor([watch.mean_s("step"), dev_s], device=processes.device)
        step_s, dev_s = (processes.sum(seconds) / processes.count).tolist()
        steps = min(most, max(LEAST_STEPS, int((60 * minutes - DEV_TIMES * dev_s) / step_s)))
        say(f"{1000 * step_s:,.0f} ms per step: {steps:,} of {most:,} steps in {minutes:g} minutes"
            + ("" if steps < most else "; all of them"))  # fmt: skip
        return steps


class Stopwatch:
    """Measures the time of each part of a step. On accelerators, which run asynchronously, only the whole counts."""

    def __init__(self) -> None:
        self._seconds: defaultdict[str, list[float]] = defaultdict(list)

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.add(part, time.perf_counter() - start)

    def add(self, part: str, seconds: float) -> None:
        self._seconds[part].append(seconds)

    def mean_s(self, part: str) -> float:
        """Return the mean time of a part in s; 0 if it was not timed."""
        return statistics.fmean(self._seconds[part] or [0.0])

    def report(self) -> dict[str, float]:
        """Return the median time of every part in ms, and the share of the total step time that the parts explain."""
        medians = {part: round(1000 * statistics.median(seconds), 1) for part, seconds in self._seconds.items()}
        whole = sum(self._seconds.get("step", []))
        parts = sum(sum(seconds) for part, seconds in self._seconds.items() if part != "step")
        return medians | ({"explained": round(parts / whole, 3)} if whole else {})


def accumulate_gradients(
    objective: Objective,
    rows: np.ndarray,
    step: int,
    weights: Mapping[Level, float],
    watch: Stopwatch | None = None,
) -> dict[Level, float]:
    """Add the gradient of the mean loss of these examples, weighted over levels: the inner loop of Algorithm 1.

    Every level runs forward and backward with its share of the loss; in the paper, all weights are equal. Returns the
    loss of each level, summed over all processes.
    """
    watch = watch or Stopwatch()
    whole = sum(weights.values()) * len(rows)
    sums = dict.fromkeys(weights, torch.zeros((), device=objective.processes.device))
    batches = iter(objective.batches(rows, step))
    while True:
        with watch("targets"):
            batch = next(batches, None)
        if batch is None:
            break
        for level, weight in weights.items():
            with watch(level_name(level)):
                sums[level] = sums[level] + objective.backward(batch, level, weight / whole)
        with watch("shared"):
            objective.finish(batch)
    return {level: objective.processes.sum(total).item() for level, total in sums.items()}


@torch.no_grad()
def evaluate(objective: Objective, rows: np.ndarray, batch_size: int) -> dict[Level, tuple[float, float]]:
    """Return the mean loss and mean RR@10 of every level over these examples; RR@10 is NaN if nothing is ranked."""
    rows = rows[np.argsort(objective.lengths[rows], kind="stable")]
    sums = dict.fromkeys(objective.model.trained_levels, torch.zeros(2, device=objective.processes.device))
    for batch_rows in np.array_split(rows, math.ceil(len(rows) / batch_size)):
        for batch in objective.batches(batch_rows, DEV_STEP):
            for level in sums:
                losses, reciprocal_ranks = objective.measure(batch, level)
                sums[level] = sums[level] + torch.stack([losses.sum(), reciprocal_ranks.sum()])
    means = {level: (objective.processes.sum(total) / len(rows)).tolist() for level, total in sums.items()}
    return {level: (loss, rr) for level, (loss, rr) in means.items()}


def levels_of_step(levels: Sequence[Level], per_step: str, seed: int, step: int) -> tuple[Level, ...]:
    """Return the levels that a step trains, largest first.

    "all": Algorithm 1 of the paper. "largest": only the largest level. 2: the smallest level and a random one. 3 or
    more: the largest level and random others. These need not include the smallest level, because training a level also
    trains the weights of the smaller levels nested in it.
    """
    if per_step == "largest":
        return (levels[0],)
    if per_step == "all" or int(per_step) >= len(levels):
        return tuple(levels)
    always = levels[-1:] if int(per_step) < 3 else levels[:1]
    others = [level for level in levels if level not in always]
    drawn = np.random.default_rng([seed, 0, step]).choice(len(others), int(per_step) - 1, replace=False)
    return tuple(sorted({*always, *(others[i] for i in drawn)}, reverse=True))


def level_weights(levels: Sequence[Level], weights: str) -> dict[Level, float]:
    """Return the loss weight of every level from "6,2,1": largest level first; the last applies to all that follow."""
    given = [float(weight) for weight in weights.split(",")]
    return dict(zip(levels, given + given[-1:] * len(levels), strict=False))


def learning_rate_factor(step: int, max_steps: int, warmup: float, decay: str) -> float:
    """Return the share of the peak learning rate at a step: linear warmup, then decay to 0 (see LoopOptions.decay)."""
    rising = max(1, round(warmup * max_steps))
    if step < rising:
        return (step + 1) / rising
    if decay == "trapezoid":
        return min(1.0, (max_steps - step) / (DECAY_SHARE * max_steps))
    left = (max_steps - step) / (max_steps - rising + 1)
    return left if decay == "linear" else 0.5 * (1 - math.cos(math.pi * left))


def corrected_steps(done: int, max_steps: int, fitting: int, warmup: float) -> int:
    """Return the number of steps of a run with --decay trapezoid, corrected to the time that is left.

    It changes only while the learning rate is constant, and so that the rate has been constant up to here.

    Args:
        done: steps done.
        max_steps: the number so far.
        fitting: further steps that fit into the time.

    >>> [corrected_steps(done, 1000, 200, 0.05) for done in (100, 300, 550, 700)]
    [300, 500, 917, 1000]
    """
    constant = 1 - DECAY_SHARE
    if done > constant * max_steps:
        return max_steps
    return min(max(done + fitting, math.ceil(done / constant)), int(done / warmup) if warmup else done + fitting)


def make_optimizers(modules: nn.Module, options: LoopOptions) -> list[Optimizer]:
    """Return AdamW, or Muon for the layers' matrices and AdamW for the rest. Groups store their ``peak_lr``.

    Biases and norms have no weight decay, as is usual for BERT.
    """
    named = [(name, p) for name, p in modules.named_parameters() if p.requires_grad and p.numel()]
    muons = {name for name, p in named if options.optimizer == "muon" and p.ndim == 2 and ".layers." in name}
    groups = [
        {"params": [p for name, p in named if name not in muons and p.ndim >= 2], "weight_decay": options.weight_decay},
        {"params": [p for name, p in named if name not in muons and p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizers: list[Optimizer] = [AdamW([group for group in groups if group["params"]], lr=options.lr)]
    if muons:
        kind = Muon if has_native_bf16() else Fp32Muon
        matrices = [p for name, p in named if name in muons]
        optimizers.append(kind(matrices, lr=options.muon_lr, weight_decay=options.weight_decay))
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
    """Let the current step finish on SIGINT or SIGTERM; a second signal takes effect at once."""
    caught: list[int] = []

    def note(number: int, frame: Any) -> None:
        caught.append(number)
        signal.signal(number, before[signal.Signals(number)])
        say("stopping after this step")

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(caught)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _resume_command() -> str:
    words = ["elasticlm", *sys.argv[1:]]
    words = [word for word in words if word not in ("--overwrite", "--resume")]
    return shlex.join(words + ["--resume"] * (words[1:2] not in RESUMED))
