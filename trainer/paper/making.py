"""Make a table of the paper: plan its jobs, run them row by row, write what is there."""

import argparse
import json
import shlex
import statistics
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from elasticlm import command
from elasticlm.__main__ import load
from elasticlm.command import say
from elasticlm.files import new_file
from elasticlm.machine import machine
from elasticlm.trainer.paper.figures import FIGURES, draw
from elasticlm.trainer.paper.jobs import Job, Jobs
from elasticlm.trainer.paper.rows import Table, read_table
from elasticlm.trainer.paper.scales import Scale
from elasticlm.trainer.paper.systems import Lab
from elasticlm.trainer.paper.table_files import write_table

PLAN_FILE = "plan.json"
TIMED_TEXTS, TIMED_TOKENS = 8, 64


def make(args: argparse.Namespace, output: Path) -> None:
    """Do what the options say."""
    scale = Scale.read(args.scale, args.set)
    output.mkdir(parents=True, exist_ok=True)
    lab = Lab(scale, Jobs(output, run_command), args.max_steps)
    table = FIGURES[args.table](lab) if args.table in FIGURES else read_table(args.table, lab)
    per_token = seconds_per_token(output, scale.base, lab.jobs)
    rows = planned(table, lab.jobs, per_token)
    command.print_table(rows)
    hours = sum(row["hours"] for row in rows)
    steps = sum(row["steps"] for row in rows)
    say(f"{table.name} at scale {scale.name}: {len(table.rows)} rows, {steps:,} steps, about {hours:.1f} hours on this "
        "machine; what is there already does not count")  # fmt: skip
    if not args.plan:
        run(table, lab.jobs, output, facts(args, scale), per_token)
    command.print_result({"output": str(output), "table": table.name, "rows": rows, "hours": round(hours, 2)})


def run(table: Table, jobs: Jobs, output: Path, about: list[str], per_token: float) -> None:
    """Run the jobs of each row in turn, and write the table after each row."""
    for number, row in enumerate(table.rows, 1):
        missing = jobs.missing(row.jobs)
        for job in missing:
            jobs.run(job)
        left = hours_of(jobs.missing(job for later in table.rows[number:] for job in later.jobs), per_token)
        frame = write_table(table, output, about)
        say(f"[{number}/{len(table.rows)}] {row.method} {row.shape}: done; about {left:.1f} hours left")
    draw(table, frame, output)
    say(f"written: {output / table.name}.md")


def planned(table: Table, jobs: Jobs, per_token: float) -> list[dict[str, Any]]:
    """What each row still takes beyond the rows before it."""
    before: set[Job] = set()
    rows = []
    for row in table.rows:
        own = [job for job in jobs.missing(row.jobs) if job not in before]
        before.update(own)
        rows.append({"method": row.method, "structure": row.shape, "jobs": len(own),
                     "steps": sum(job.steps for job in own), "hours": round(hours_of(own, per_token), 2)})  # fmt: skip
    return rows


def hours_of(jobs: Iterable[Job], per_token: float) -> float:
    """The expected time of jobs, of their passes alone: loading and profiling come on top."""
    return sum(job.cost for job in jobs) * per_token / 3600


def seconds_per_token(folder: Path, base: str, jobs: Jobs) -> float:
    """The time that the base encoder's forward pass takes per token, in s.

    Of finished trainings, the median of what they took; before there are three, a few passes are timed.
    """
    ratios = [job["seconds"] / job["cost"] for job in jobs.state().values() if job["cost"] and job["seconds"] > 30]
    if len(ratios) >= 3:
        return statistics.median(ratios)
    file = folder / PLAN_FILE
    if file.exists():
        return json.loads(file.read_text("utf-8"))["seconds_per_token"]
    from elasticlm.model.teacher import load_model
    from elasticlm.schedule.profiling import text_of

    model = load_model(base)
    tokens = min(TIMED_TOKENS, model.config.max_tokens.passage)
    texts = [text_of(model, tokens)] * TIMED_TEXTS
    model.embed(texts, kind="passage")
    start = time.perf_counter()
    model.embed(texts, kind="passage")
    found = (time.perf_counter() - start) / (TIMED_TEXTS * tokens)
    with new_file(file) as temporary:
        temporary.write_text(json.dumps({"seconds_per_token": found}), "utf-8")
    return found


def run_command(name: str, options: list[str]) -> None:
    """Run a command of elasticlm in this process."""
    load(name)(options)


def facts(args: argparse.Namespace, scale: Scale) -> list[str]:
    """The paragraphs above the table."""
    words = ["elasticlm", "paper", args.table, "--scale", args.scale]
    words += ["--set", *args.set] if args.set else []
    words += ["--max-steps", str(args.max_steps)] if args.max_steps else []
    about = machine(("torch", "transformers", "faiss-cpu"))
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    return [
        scale.description.strip(),
        "Each cell: our figure, its share of our teacher's, and in brackets the paper's share of its own teacher's. "
        "Bold: the best of a block. §: better than the rival that the paper tests against (paired t-test, p < 0.05). "
        "GLUE's score is the mean of the sets that there are.",
        f"```sh\n{shlex.join(words)}\n```",
        f"{about['cpu']}, {about['cores']} cores, Python {about['python']}, {versions}; {about['date']}.",
    ]
