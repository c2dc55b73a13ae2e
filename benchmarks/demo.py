"""`make demo`: the whole path on one machine, each stage the command that a user would type.

A pretrained teacher, docstrings of the installed Python packages as data, and at the end a page with the rush. How many
passages there are and how many examples are scored follows from how fast this machine encodes, and training has a
limit in minutes, so that the whole takes about a quarter of an hour anywhere. Stages that are done (same command, same
inputs) are not run again, and the plan stays what it was.
"""

import argparse
import hashlib
import json
import shlex
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from elasticlm.command import parser, print_result, print_table, run_in_checkout, say
from elasticlm.errors import InputError
from elasticlm.files import claim, new_file
from elasticlm.schedule.latency import LatencyTable
from elasticlm.schedule.policies import parse_policy

if TYPE_CHECKING:
    from elasticlm.model.elastic_model import ElasticModel

TEACHER = "sentence-transformers/all-MiniLM-L6-v2"
BUDGET = 5  # latency budget, in service times of the largest level
RUSH_TOKENS = 128  # length limit of the `related` workload's queries


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much of everything, at most: `full` is the demo, `small` walks the same path in a few minutes."""

    levels: str
    max_examples: int
    max_steps: int
    minutes: float
    profile_tokens: str
    duration_s: int
    passages: int


SIZES = {
    "full": Size(levels="100,50,30,20,10,5", max_examples=1024, max_steps=1200, minutes=5,
                 profile_tokens="16,64,128,256", duration_s=45, passages=5000),
    "small": Size(levels="100,30,5", max_examples=128, max_steps=30, minutes=2, profile_tokens="16,128",
                  duration_s=10, passages=1000),
}  # fmt: skip
FULL_SPEED = 70
"""Passages per second that the teacher encodes where the largest sizes fit into a quarter of an hour."""
LEAST_SHARE = 0.2
"""Share of the largest sizes that is kept however slow the machine is."""
TIMED_PASSAGES, TIMED_TOKENS = 64, 96


@dataclass(frozen=True)
class Plan:
    """What this machine is given to do.

    Attributes:
        passages_per_s: passages that the teacher encodes per second.
        passages: of the corpus.
        max_examples: whose loss ranks heads and neurons.
    """

    passages_per_s: float
    passages: int
    max_examples: int

    @classmethod
    def of(cls, size: Size, passages_per_s: float) -> "Plan":
        """Fit a size to a machine.

        >>> Plan.of(SIZES["full"], 90.0).passages, Plan.of(SIZES["full"], 35.0).passages
        (5000, 2500)
        """
        share = min(1.0, max(LEAST_SHARE, passages_per_s / FULL_SPEED))
        return cls(passages_per_s, round(share * size.passages / 100) * 100, round(share * size.max_examples))


class Stages:
    """Runs commands one after another; remembers those that are done in a file next to their outputs."""

    def __init__(self, folder: Path, total: int) -> None:
        self._total, self._number = total, 0
        self._file = folder / "stages.json"
        self._keys: dict[str, str] = json.loads(self._file.read_text()) if self._file.exists() else {}
        self._before = ""  # keys of all stages so far: a stage is stale when any before it ran anew

    def run(self, title: str, command: list[str], output: Path, *, resumable: bool = False) -> None:
        """Run ``elasticlm command...`` unless it is done and its output exists; go on with one that was interrupted."""
        self._number += 1
        head = f"[{self._number}/{self._total}] {title}"
        key = hashlib.sha256(json.dumps([self._before, command]).encode()).hexdigest()
        self._before = key
        name = title.partition(":")[0]
        if self._keys.get(name) == key and output.exists():
            say(f"{head}: done before, reused ({output})")
            return
        if resumable and self._keys.get(f"{name}, unfinished") == key:
            command = [*command, "--resume"]
        self._note(f"{name}, unfinished", key)
        say(f"{head}\n      elasticlm {shlex.join(command)}")
        start = time.monotonic()
        # The commands' own tables go to stderr with their progress: stdout is for the demo's table and result.
        code = subprocess.run(
            [sys.executable, "-m", "elasticlm", *command], stdout=sys.stderr.fileno(), check=False
        ).returncode
        if code:
            raise InputError(f"{title} ended with exit code {code}; `make demo` takes up again from here")
        self._note(name, key)
        say(f"      took {time.monotonic() - start:.0f} s")

    def _note(self, name: str, key: str) -> None:
        self._keys[name] = key
        with new_file(self._file) as temporary:
            temporary.write_text(json.dumps(self._keys, indent=1))


def main(argv: list[str] | None = None) -> None:
    """Entry point."""
    options = parser("elasticlm demo", "From a pretrained model to a rush on a page.")
    options.add_argument("--size", choices=list(SIZES), default="full", help="how much of everything")
    options.add_argument("--output", type=Path, default=Path("demo"), help="folder for all that it makes")
    options.add_argument("--teacher", default=TEACHER, help="a sentence encoder: folder or name on the hub")
    options.add_argument("--plan", action="store_true", help="only time the teacher and say what would be done")
    arguments = options.parse_args(argv)
    with claim(arguments.output / arguments.size, overwrite=True):
        run_demo(arguments)


def planned(folder: Path, size: Size, teacher: str) -> Plan:
    """Return the plan of this folder; times the teacher and writes it where there is none."""
    file = folder / "plan.json"
    if file.exists():
        return Plan(**json.loads(file.read_text("utf-8")))
    from elasticlm.backend.onnx_export import on_onnx_runtime
    from elasticlm.model.teacher import load_model
    from elasticlm.schedule.profiling import text_of

    model = load_model(teacher)
    texts = [text_of(model, min(TIMED_TOKENS, model.config.max_tokens.passage))] * TIMED_PASSAGES
    with on_onnx_runtime(model):
        model.embed(texts[:8], kind="passage")
        start = time.perf_counter()
        model.embed(texts, kind="passage")
    plan = Plan.of(size, round(TIMED_PASSAGES / (time.perf_counter() - start), 1))
    with new_file(file) as temporary:
        temporary.write_text(json.dumps(asdict(plan)), "utf-8")
    return plan


def run_demo(arguments: argparse.Namespace) -> None:
    """Run the stages that are not done yet, and print what came out."""
    size, folder = SIZES[arguments.size], arguments.output / arguments.size
    folder.mkdir(parents=True, exist_ok=True)
    stages = Stages(folder, total=7)
    start = time.monotonic()
    plan = planned(folder, size, arguments.teacher)
    say(f"This machine encodes {plan.passages_per_s:g} passages per second: {plan.passages:,} of {size.passages:,} "
        f"passages, {plan.max_examples:,} of {size.max_examples:,} examples to rank units by, and as many of "
        f"{size.max_steps:,} training steps as fit into {size.minutes:g} minutes. More time buys steps, which raise "
        "the small levels most: `elasticlm recipe pydoc_align`")  # fmt: skip
    if arguments.plan:
        print_result(asdict(plan) | {"minutes": size.minutes, "max_steps": size.max_steps})
        return
    pruned, index, model = folder / "pruned", folder / "index", folder / "aligned"
    quality, archive, rush = folder / "quality.json", folder / "store" / "demo.mar", folder / "rush"

    data, fresh = ["--data", f"pydoc:{plan.passages}"], "--overwrite"
    stages.run(
        "Prune: rank heads and neurons, nest the levels",
        ["prune", "--teacher", arguments.teacher, *data, "--levels", size.levels,
         "--max-examples", str(plan.max_examples), "--output", str(pruned), fresh],
        pruned,
    )  # fmt: skip
    stages.run(
        "Index: the teacher encodes the passages, as a production index would be encoded",
        ["index", "--model", str(pruned), *data, "--output", str(index), fresh],
        index,
    )
    stages.run(
        "Align: the levels below 100 are trained to place queries where the teacher does, without labels",
        ["finetune", "--task", "align", "--model", str(pruned), *data, "--index", str(index),
         "--max-steps", str(size.max_steps), "--minutes", str(size.minutes), "--decay", "trapezoid",
         "--output", str(model), fresh],
        model,
        resumable=True,
    )  # fmt: skip
    stages.run(
        "Evaluate: retrieval quality of every level",
        ["evaluate", "--model", str(model), *data, "--split", "test", "--index", str(index),
         "--output", str(quality), "--save", fresh],
        quality,
    )  # fmt: skip
    stages.run(
        "Profile: what every level costs on this machine",
        ["profile", "--model", str(model), "--backend", "onnx", "--rows", "1",
         "--tokens", size.profile_tokens],
        model / "latency.csv",
    )  # fmt: skip

    table = LatencyTable.read(model / "latency.csv")
    budget_ms = round(BUDGET * table.mean_ms(table.levels[0], tokens=RUSH_TOKENS))
    arms = [f"deadline:t={budget_ms}", f"slack:t={budget_ms}", f"fixed:{table.levels[0]}", f"fixed:{table.levels[-1]}"]
    stages.run(
        "Archive: one .mar with the model, the handler and the settings",
        ["archive", "--model", str(model), "--name", "demo", "--output", str(archive.parent),
         "--policy", arms[0], "--tokens", str(RUSH_TOKENS), fresh],
        archive,
    )  # fmt: skip
    stages.run(
        f"Rush: {len(arms)} arms of {size.duration_s} s against the real TorchServe, budget {budget_ms} ms",
        ["simulate", "--archive", str(archive), *data, "--split", "test", "--index", str(index),
         "--workload", "related", "--arms", *arms, "--budgets", str(budget_ms), "--users", "auto",
         "--duration", str(size.duration_s), "--output", str(rush), fresh],
        rush,
    )  # fmt: skip

    from elasticlm.model.elastic_model import ElasticModel

    report(ElasticModel.from_pretrained(model), table, json.loads(quality.read_text()), rush, arms, budget_ms)
    say(f"\nEverything took {time.monotonic() - start:.0f} s. Open the page: {rush / 'index.html'}")


def report(
    model: "ElasticModel", table: LatencyTable, quality: dict, rush: Path, arms: list[str], budget_ms: float
) -> None:
    """Print the demo's two tables, one row per level and one row per arm, and the result for programs."""
    summary = json.loads((rush / "summary.json").read_text())
    largest = model.structures[table.levels[0]]
    family = model.encoder.family
    whole = family.prunable_parameters(model.config, largest)
    levels = []
    for row, metrics in quality["metrics"].items():
        level = None if row == "teacher" else next(k for k in table.levels if str(k) == row)
        retention = quality["retention"].get(row, {}).get("RR@10", [1.0])[0]
        levels.append({
            "level": row,
            "parameters": f"{family.prunable_parameters(model.config, model.structures[level]) / whole:.0%}"
            if level
            else "",
            "RR@10": metrics["RR@10"],
            "retention": f"{retention:.1%}",
            f"mean ms ({RUSH_TOKENS} tokens)": f"{table.mean_ms(level, tokens=RUSH_TOKENS):.1f}" if level else "",
        })  # fmt: skip
    print()
    print_table(levels)
    print()
    rows = []
    for arm in (str(parse_policy(text)) for text in arms):
        measured = summary["arms"][arm]
        judged = next(iter(measured["budgets"].values()))
        rows.append({"arm": arm, "requests": measured["requests"], "p99 ms": round(measured["p99_ms"]),
                     f"within {budget_ms} ms": f"{judged['within_budget']:.1%}", "quality": measured["quality"],
                     "effective quality": judged["effective_quality"]})  # fmt: skip
    print_table(rows)
    print()
    print_result({"budget_ms": budget_ms, "metrics": quality["metrics"], "arms": summary["arms"],
                  "page": str(rush / "index.html")})  # fmt: skip


if __name__ == "__main__":
    run_in_checkout("demo")
