"""The policy simulator checked against the real server, on the arrivals that the server has seen.

    elasticlm simulate --archive model_store/mini.mar ... --arrivals gamma:20,4 --load 0.6 --output out/gamma
    elasticlm validate --model out/model --runs out/gamma out/trace --output out/validation.json

The simulator uses two measurements of the server from before the run: how many requests per second it answers at the
largest and at the smallest level. They fix its two unknowns, the turnaround from one batch to the next and a factor on
the latency table (the texts are shorter or longer than the table's). Everything else is the simulator's own.
"""

import argparse
from pathlib import Path

from elasticlm.arguments import positive_int
from elasticlm.command import parser, run_in_checkout
from elasticlm.files import refuse_existing, require_file
from elasticlm.model.folder import LATENCY_FILE


def main(argv: list[str] | None = None) -> int:
    """Entry point; the work is in elasticlm.benchmarks.simulator_agreement."""
    options = _options().parse_args(argv)
    refuse_existing(options.output, overwrite=options.overwrite)
    require_file(options.model / LATENCY_FILE)
    for folder in options.runs:
        require_file(folder / "summary.json", "not what `elasticlm simulate` writes")
    from elasticlm.benchmarks.simulator_agreement import compare_with_server

    return compare_with_server(options)


def _options() -> argparse.ArgumentParser:
    options = parser("elasticlm validate", "Compare the policy simulator with runs of the real server.")
    options.add_argument("--model", type=Path, required=True, metavar="DIR", help="artifact that was served: its "
                         "latency.csv")  # fmt: skip
    options.add_argument("--runs", type=Path, nargs="+", required=True, metavar="DIR", help="outputs of "
                         "`elasticlm simulate` with --arrivals and --load; one worker, batch size 1")  # fmt: skip
    options.add_argument("--tokens", type=positive_int, default=128, help="length of the requests in tokens")
    options.add_argument("--output", type=Path, required=True, metavar="FILE", help="JSON file to write")
    options.add_argument("--overwrite", action="store_true", help="replace the output file")
    return options


if __name__ == "__main__":
    run_in_checkout("validate")
