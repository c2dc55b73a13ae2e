"""The commands behind a table: each makes one output and is run once; an interrupted one is resumed."""

import json
import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from elasticlm.command import say
from elasticlm.errors import InputError
from elasticlm.files import new_file
from elasticlm.model.folder import LATENCY_FILE

STATE_FILE = "jobs.json"
CHOSEN = "@"
RESUMABLE = ("distil", "finetune", "baseline")
Run = Callable[[str, list[str]], object]
"""Runs a command of elasticlm with its options."""


@dataclass(frozen=True)
class Job:
    """A command and its output.

    Attributes:
        command: of elasticlm, or one of ACTIONS.
        cost: base passes: tokens that the base encoder would have to run forward to take as long; for estimates.
        steps: of training.
    """

    command: str
    options: tuple[str, ...]
    output: Path
    cost: float = 0.0
    steps: int = 0


@dataclass
class Jobs:
    """All jobs of a folder, in an order in which each one's inputs come before it.

    Args:
        folder: their outputs lie there, and jobs.json, which says what is done.
    """

    folder: Path
    run_command: Run
    _jobs: dict[Path, Job] = field(default_factory=dict)
    _wanted: list[Job] = field(default_factory=list)

    def add(self, job: Job) -> Path:
        """Add a job, or note that it is needed again; return its output. Raises InputError where two differ."""
        known = self._jobs.setdefault(job.output, job)
        if known != job:
            raise InputError(f"{job.output} would be made in two ways: {known.options} and {job.options}")
        if known not in self._wanted:
            self._wanted.append(known)
        return job.output

    def taken(self) -> list[Job]:
        """The jobs that were added since this was called last, those of earlier rows among them."""
        found, self._wanted = self._wanted, []
        return found

    def missing(self, jobs: Iterable[Job]) -> list[Job]:
        """The jobs that are still to be done. Raises InputError where an output was made by other options."""
        state = self.state()
        missing = []
        for job in dict.fromkeys(jobs):
            done = state.get(self._name(job))
            if done is None or not job.output.exists():
                missing.append(job)
            elif done["command"] != [job.command, *job.options]:
                raise InputError(f"{job.output} was made by other options: choose another --output, or remove it")
        return missing

    def run(self, job: Job) -> None:
        """Do a job and note that it is done."""
        start = time.monotonic()
        job.output.parent.mkdir(parents=True, exist_ok=True)
        say(f"{self._name(job)}: {job.command} {' '.join(job.options)}")
        if job.command in ACTIONS:
            ACTIONS[job.command](job.output, [resolved(word) for word in job.options], self.run_command)
        else:
            again = ["--overwrite", *(["--resume"] if job.command in RESUMABLE else [])]
            self.run_command(job.command, [*map(resolved, job.options), *again])
        state = self.state() | {self._name(job): {
            "command": [job.command, *job.options], "seconds": round(time.monotonic() - start, 1), "cost": job.cost,
        }}  # fmt: skip
        with new_file(self.folder / STATE_FILE) as file:
            file.write_text(json.dumps(state, indent=1), "utf-8")

    def state(self) -> dict[str, dict]:
        """What is done, by the output's name: its command, the seconds it took, its cost."""
        file = self.folder / STATE_FILE
        return json.loads(file.read_text("utf-8")) if file.exists() else {}

    def _name(self, job: Job) -> str:
        return str(job.output.relative_to(self.folder))


def choose(output: Path, candidates: list[str], run_command: Run) -> None:
    """Write which of several trainings has the lowest mean loss on the held-out part of its training data.

    The levels' losses count alike. What was chosen stays where it is; ``output`` is a file with its path. Later jobs
    name it by chosen().
    """
    losses = {}
    for folder in candidates:
        after = json.loads((Path(folder) / "training.json").read_text("utf-8"))["dev_loss_after"]
        losses[folder] = sum(after.values()) / len(after)
    best = min(losses, key=losses.__getitem__)
    say(f"chosen of {len(losses)}: {best}")
    with new_file(output) as file:
        file.write_text(json.dumps({"chosen": best, "dev_loss": losses}, indent=1), "utf-8")


def pack(output: Path, options: list[str], run_command: Run) -> None:
    """Profile an artifact and pack it into an archive in the folder ``output``, with its latency table."""
    model, label, tokens = options
    run_command("profile", ["--model", model, "--rows", "1", "--tokens", tokens])
    run_command("archive", ["--model", model, "--name", label, "--output", str(output), "--tokens", tokens,
                            "--overwrite"])  # fmt: skip
    shutil.copyfile(Path(model) / LATENCY_FILE, output / f"{label}.latency.csv")


ACTIONS: dict[str, Callable[[Path, list[str], Run], None]] = {"choose": choose, "pack": pack}
"""What is no command of elasticlm: functions of the output, the job's options and what runs commands."""


def chosen(file: Path, inner: str = "") -> str:
    """The word that means the folder that a choice will have taken, or one inside it."""
    return f"{CHOSEN}{file}::{inner}"


def resolved(word: str) -> str:
    """An option's word as the command takes it.

    >>> resolved("--model")
    '--model'
    """
    if not word.startswith(CHOSEN):
        return word
    file, _, inner = word.removeprefix(CHOSEN).partition("::")
    return str(Path(json.loads(Path(file).read_text("utf-8"))["chosen"]) / inner)
