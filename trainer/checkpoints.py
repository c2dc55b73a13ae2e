"""What a training run keeps on disk: its last state, its log, and in the end the artifact."""

import csv
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn
from torch.optim import Optimizer

from elasticlm.errors import InputError
from elasticlm.files import is_main_process, new_folder, refuse_existing, remove_folder
from elasticlm.model.structure import Level, level_name
from elasticlm.trainer.curves import draw_curves
from elasticlm.trainer.loop_options import flag

LOSS_FILE, CURVES_FILE, TRAINING_FILE = "loss.csv", "loss.png", "training.json"
COLUMNS = ("step", "split", "level", "loss", "RR@10")
WEIGHTS_FILE, OPTIMIZERS_FILE, STATE_FILE = "weights.safetensors", "optimizers.pt", "state.json"


class Checkpoints:
    """The working folder of a run, ``OUTPUT.checkpoints``, next to its output; it is deleted when the run succeeds.

    Under torchrun the first process checks and writes it; the others read it after ``Processes`` has waited for all.

    Raises InputError if the output exists, or if it has an unfinished run that is neither resumed nor replaced.
    """

    def __init__(self, output: str | Path, *, resume: bool, overwrite: bool) -> None:
        self.output, self._overwrite = Path(output), overwrite
        self.folder = self.output.with_name(self.output.name + ".checkpoints")
        if not is_main_process():
            return
        refuse_existing(self.output, overwrite=overwrite)
        if self.folder.exists() and not resume:
            if not overwrite:
                raise InputError(
                    f"{self.folder} holds an unfinished run of this output: give --resume to go on with it, "
                    "or --overwrite to start anew"
                )
            remove_folder(self.folder)

    def save(
        self,
        step: int,
        modules: nn.Module,
        optimizers: Sequence[Optimizer],
        log: "TrainingLog",
        settings: Mapping[str, Any],
        seconds: float,
    ) -> None:
        """Write the state after ``step`` steps, then remove the one before: there is a complete state at any moment."""
        with new_folder(self.folder / f"step-{step:08}") as folder:
            safetensors.torch.save_file(modules.state_dict(), folder / WEIGHTS_FILE)
            with open(folder / OPTIMIZERS_FILE, "wb") as out:  # given a path, torch does not say why it cannot write
                torch.save([optimizer.state_dict() for optimizer in optimizers], out)
            log.write(folder / LOSS_FILE)
            state = {"step": step, "settings": settings, "seconds": seconds}
            (folder / STATE_FILE).write_text(json.dumps(state, indent=1))
        for older in self._states()[:-1]:
            remove_folder(older)

    def settings(self) -> dict[str, Any] | None:
        """The settings that an unfinished run was started with; None where there is none."""
        states = self._states()
        return json.loads((states[-1] / STATE_FILE).read_text())["settings"] if states else None

    def load(
        self,
        modules: nn.Module,
        optimizers: Sequence[Optimizer],
        log: "TrainingLog",
        settings: Mapping[str, Any],
        free: Sequence[str] = (),
    ) -> tuple[int, float]:
        """Restore the last state, if there is one; return the steps done and the seconds that they took.

        Raises InputError where the run was started with other settings than these, the free ones left aside.
        """
        if not (states := self._states()):
            return 0, 0.0
        folder = states[-1]
        state = json.loads((folder / STATE_FILE).read_text())
        for name, value in state["settings"].items():
            if settings[name] != value and name not in free:
                raise InputError(
                    f"{self.folder} was started with {flag(name)} {value}, not {settings[name]}: "
                    "resume with the same options, or start anew with --overwrite"
                )
        modules.load_state_dict(safetensors.torch.load_file(folder / WEIGHTS_FILE))
        for optimizer, saved in zip(optimizers, torch.load(folder / OPTIMIZERS_FILE, weights_only=True), strict=True):
            optimizer.load_state_dict(saved)
        log.read(folder / LOSS_FILE)
        return state["step"], state["seconds"]

    def finish(self, save: Callable[[Path], None], log: "TrainingLog", report: Mapping[str, Any]) -> None:
        """Write what was trained with its log, the curves and how it was trained, and remove the checkpoints.

        Args:
            save: writes the artifact into a folder.
        """
        with new_folder(self.output, overwrite=self._overwrite) as folder:
            save(folder)
            log.write(folder / LOSS_FILE)
            draw_curves(log, folder / CURVES_FILE)
            (folder / TRAINING_FILE).write_text(json.dumps(report, indent=1))
        remove_folder(self.folder)

    def _states(self) -> list[Path]:
        return sorted(self.folder.glob("step-*"))


class TrainingLog:
    """A row (step, split, level, loss, RR@10) for each level of each step, and for each dev loss.

    RR@10 is set in dev rows of objectives that rank passages (see Objective.measure); elsewhere it is NaN, and empty in
    the file.
    """

    def __init__(self) -> None:
        self.rows: list[tuple[int, str, str, float, float]] = []

    def add(self, step: int, split: str, level: Level, loss: float, rr: float = math.nan) -> None:
        self.rows.append((step, split, level_name(level), loss, rr))

    def write(self, file: Path) -> None:
        cells = ((*row[:-1], "" if math.isnan(row[-1]) else row[-1]) for row in self.rows)
        with open(file, "w", encoding="utf-8", newline="") as out:
            csv.writer(out, lineterminator="\n").writerows([COLUMNS, *cells])

    def read(self, file: Path) -> None:
        with open(file, encoding="utf-8", newline="") as lines:
            _, *rows = csv.reader(lines)
        self.rows = [
            (int(step), split, level, float(loss), float(rr or "nan")) for step, split, level, loss, rr in rows
        ]

    def dev(self) -> tuple[dict[str, float], dict[str, float]]:
        """The first and the last dev loss of every level."""
        first: dict[str, float] = {}
        last: dict[str, float] = {}
        for _, split, level, loss, _ in self.rows:
            if split == "dev":
                first.setdefault(level, loss)
                last[level] = loss
        return first, last
