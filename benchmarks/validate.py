"""The policy simulator checked against the real server, on the arrivals that the server has seen.

    elasticlm simulate --archive model_store/mini.mar ... --arrivals gamma:20,4 --load 0.6 --output out/gamma
    elasticlm validate --archive model_store/mini.mar --runs out/gamma out/trace --output out/validation.json

The simulator uses measurements of the server from before the run. How many requests per second it answers at the
largest and at the smallest level says how long the turnaround from one batch to the next is, and by what factor the
machine is slower than when the latency table was measured. Bursts into a full queue say how long driver and frontend
need per request. Everything else is the simulator's own. Its requests all have the same length: give `simulate` the
option `--tokens`.
"""

import argparse
from pathlib import Path

from elasticlm.command import parser, run_in_checkout
from elasticlm.files import refuse_existing, require_file
from elasticlm.model.folder import LATENCY_FILE


def main(argv: list[str] | None = None) -> int:
    """Entry point; the work is in elasticlm.benchmarks.simulator_agreement."""
    options = _options().parse_args(argv)
    refuse_existing(options.output, overwrite=options.overwrite)
    require_file(options.archive or options.model / LATENCY_FILE)
    for folder in options.runs:
        require_file(folder / "summary.json", "not what `elasticlm simulate` writes")
    from elasticlm.benchmarks.simulator_agreement import compare_with_server

    return compare_with_server(options)


def _options() -> argparse.ArgumentParser:
    options = parser("elasticlm validate", "Compare the policy simulator with runs of the real server.")
    served = options.add_mutually_exclusive_group(required=True)
    served.add_argument("--archive", type=Path, metavar="FILE.mar", help="what was served; also of a pipeline")
    served.add_argument("--model", type=Path, metavar="DIR", help="artifact that was served: its latency.csv")
    options.add_argument("--runs", type=Path, nargs="+", required=True, metavar="DIR", help="outputs of "
                         "`elasticlm simulate` with --arrivals and --load")  # fmt: skip
    options.add_argument("--output", type=Path, required=True, metavar="FILE", help="JSON file to write")
    options.add_argument("--overwrite", action="store_true", help="replace the output file")
    return options


if __name__ == "__main__":
    run_in_checkout("validate")
