"""The policy simulator: what a policy makes of given arrivals, from the latency table alone, without a server.

    elasticlm policies --model out/model --arrivals trace:arrivals.csv gamma:20,4 rush:60 \\
        --policies slack:t=250,alpha=0.6 queue:t=250 fixed:50 --output out/policies
    elasticlm policies --archive model_store/mini.mar --arrivals gamma:20,4 --recommend --output out/best

An archive brings its levels' times and quality, of a pipeline those of its pairs of levels, and the budget, batch size,
workers and delay that it is served with; of a model all that is an option.

Arrivals are open loops, `trace:FILE.csv`, `poisson:RATE`, `gamma:RATE,CV` (requests per second), or the paper's rush,
`rush:USERS`: users grow evenly over the first 50/120 of the duration and pause 1-3 s between answer and next request.
Of a trace the busiest window is taken: the `--requests` consecutive arrivals that took the least time (all where there
are fewer); of the others the first so many. `--load 0.6` then stretches or shrinks the time axis, so that the window's
mean rate is 0.6 of what the server would answer at the largest level with full batches, its overhead included; bursts
keep their form.

Every policy meets the same arrivals and, request by request, the same luck in service time. With one worker, batch size
1 and an open loop a bound is reported as well: the best that any choice of levels could have reached, had it known all
arrivals and service times. Requests that cannot be answered in time are refused, see --late and --queue-size.

The result is a folder: trace.csv (one row per request; arm is the policy, with ` on ARRIVALS` where there are several),
summary.json and policies.png.
"""

import argparse
from pathlib import Path

from elasticlm.arguments import non_negative_float, non_negative_int, positive_float, positive_int
from elasticlm.benchmarks.arrivals import parse_arrivals
from elasticlm.command import parser, run_in_checkout
from elasticlm.errors import InputError
from elasticlm.files import claim, require_file
from elasticlm.model.folder import LATENCY_FILE
from elasticlm.model.structure import Choice, parse_choice
from elasticlm.schedule.policies import parse_policy
from elasticlm.schedule.triage import LATE


def main(argv: list[str] | None = None) -> None:
    """Entry point; the work is in elasticlm.benchmarks.policy_study."""
    options = _options().parse_args(argv)
    if options.archive:
        require_file(options.archive)
    else:
        missing = f"no latency table; measure one with `elasticlm profile --model {options.model}`"
        require_file(options.model / LATENCY_FILE, missing)
    for policy in options.policies or ():
        parse_policy(policy, default_budget_ms=1.0)
    for spec in options.arrivals:
        if not spec.startswith("rush:"):
            try:
                parse_arrivals(spec)
            except InputError as error:
                raise InputError(f"{error}; or rush:USERS") from None
    with claim(options.output, overwrite=options.overwrite):
        from elasticlm.benchmarks.policy_study import run_study

        run_study(options)


def _options() -> argparse.ArgumentParser:
    options = parser("elasticlm policies", "Simulate policies on arrivals from the latency table alone.")
    served = options.add_mutually_exclusive_group(required=True)
    served.add_argument("--model", type=Path, metavar="DIR",
                        help="artifact folder: its latency.csv, and its quality.json where it has one")  # fmt: skip
    served.add_argument("--archive", type=Path, metavar="FILE.mar", help="the same from an archive, with its budget, "
                        "batch size and workers; of a pipeline its pairs of levels")  # fmt: skip
    options.add_argument("--arrivals", nargs="+", required=True, metavar="SPEC", help="trace:FILE.csv, poisson:RATE, "
                         "gamma:RATE,CV (RATE in requests a second) or rush:USERS (closed loop)")  # fmt: skip
    options.add_argument("--policies", nargs="+", metavar="POLICY", help="deadline:t=MS, slack:t=MS,alpha=SHARE, "
                         "queue:t=MS; without t: --budget; fixed:LEVEL refuses nothing, fixed:LEVEL,t=MS what is late "
                         "(default: deadline slack queue fixed:LARGEST fixed:SMALLEST)")  # fmt: skip
    options.add_argument("--budget", type=positive_float, metavar="MS", help="latency budget T in ms for policies "
                         "without t, of the picture and of --recommend; every policy is judged by it and by every t "
                         "(default: the archive's, else the smallest t)")  # fmt: skip
    options.add_argument("--load", type=positive_float, metavar="SHARE", help="scale open loops' time so that the mean "
                         "load is this share of the largest level's capacity (default: as they are)")  # fmt: skip
    options.add_argument("--requests", type=positive_int, default=3000, help="requests of an open loop; of a trace the "
                         "busiest window of so many")  # fmt: skip
    options.add_argument("--duration", type=positive_float, default=120.0, metavar="S", help="seconds of a rush")
    options.add_argument("--batch-size", type=positive_int, help="largest batch, B (default: the archive's, "
                         "else 1)")  # fmt: skip
    options.add_argument("--workers", type=positive_int, help="workers sharing the queue, W (default: the archive's, "
                         "else 1)")  # fmt: skip
    options.add_argument("--max-batch-delay-ms", type=positive_float, metavar="MS", help="how long a batch waits "
                         "for more, in ms (default: the archive's, else 1)")  # fmt: skip
    options.add_argument("--overhead-ms", type=non_negative_float, default=5.0, metavar="MS",
                         help="time in ms that the server adds to the latency of a request")  # fmt: skip
    options.add_argument("--turnaround-ms", type=non_negative_float, default=2.0, metavar="MS",
                         help="time in ms from one batch of a worker to the next beyond the service time; a server "
                         "publishes it as elastic_turnaround_seconds")  # fmt: skip
    options.add_argument("--refusal-ms", type=non_negative_float, default=0.5, metavar="MS",
                         help="time in ms that a worker needs for refusing a request, besides the turnaround if it "
                         "refuses a whole batch")  # fmt: skip
    options.add_argument("--ingress-ms", type=non_negative_float, default=0.0, metavar="MS", help="time in ms that "
                         "the server needs to put one request into the queue, one after another")  # fmt: skip
    options.add_argument("--queue-size", type=positive_int, metavar="N", help="requests that may wait; more are "
                         "refused at once (default: any number)")  # fmt: skip
    options.add_argument("--late", default="shed", choices=LATE, help="what to do with requests that cannot be "
                         "answered in time: refuse them if others can be saved, never, or always")  # fmt: skip
    options.add_argument(
        "--rows", type=positive_int, default=1, help="sequences of a request (a rerank of 8 passages is 8)"
    )
    options.add_argument("--tokens", type=positive_int, help="padded length of a request (default: shortest of "
                         "the table)")  # fmt: skip
    options.add_argument("--levels", type=_levels, metavar="K,..", help="levels to serve, of a pipeline pairs such as "
                         "100+50,50+10 (default: all of the table)")  # fmt: skip
    options.add_argument("--quality", type=_quality, metavar="K=Q,..", help="quality of every level, such as "
                         "100=.61,50=.6 (default: from quality.json)")  # fmt: skip
    options.add_argument("--judged-on", metavar="SPEC#SPLIT", help="whose figures of quality.json (default: its first)")
    options.add_argument("--measure", metavar="NAME", help="which measure of quality.json (default: its first)")
    options.add_argument("--grid-ms", type=positive_float, default=1.0, metavar="MS", help="grid of the bound with "
                         "hindsight in ms; a finer one makes it tighter and slower")  # fmt: skip
    options.add_argument("--recommend", action="store_true", help="recommend workers (or those of --workers), batch "
                         "size, queue size and levels to keep under deadline")  # fmt: skip
    options.add_argument("--seed", type=non_negative_int, default=0, help="of arrivals, pauses and service times")
    options.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder for trace, summary, picture")
    options.add_argument("--overwrite", action="store_true", help="replace the output folder")
    return options


def _levels(text: str) -> tuple[Choice, ...]:
    try:
        levels = tuple(parse_choice(part.strip()) for part in text.split(","))
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if len(set(levels)) < len(levels):
        raise argparse.ArgumentTypeError(f"levels {text!r}: duplicate level")
    return levels


def _quality(text: str) -> dict[Choice, float]:
    try:
        return {parse_choice(level): non_negative_float(value) for level, value in
                (part.split("=") for part in text.split(","))}  # fmt: skip
    except (ValueError, argparse.ArgumentTypeError):
        raise argparse.ArgumentTypeError(
            f"{text}: expected LEVEL=VALUE,.. with values of 0 or more, such as 100=.61,50=.6"
        ) from None


if __name__ == "__main__":
    run_in_checkout("policies")
