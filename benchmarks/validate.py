"""The policy simulator checked against the real server, on the arrivals that the server has seen.

    elasticlm simulate --archive model_store/mini.mar ... --arrivals gamma:20,4 --load 0.6 --output out/gamma
    elasticlm validate --archive model_store/mini.mar --runs out/gamma out/trace --output out/validation.json

The simulator takes the speed of the machine from the run, since a machine is not equally fast all the time: the time
from one answer to the next while others wait tells by what factor each level was slower than in the latency table, and
how long the turnaround was. Bursts into a full queue, sent before the run, say how long driver and frontend need per
request. Everything else is the simulator's own. Its requests all have the same length: give `simulate` the option
`--tokens`.
"""

import argparse
from pathlib import Path

from elasticlm.command import parser, run_in_checkout
from elasticlm.files import claim, require_file
from elasticlm.model.folder import LATENCY_FILE


def main(argv: list[str] | None = None) -> int:
    """Entry point; the work is in elasticlm.benchmarks.simulator_agreement."""
    options = _options().parse_args(argv)
    require_file(options.archive or options.model / LATENCY_FILE)
    for folder in options.runs:
        require_file(folder / "summary.json", "not what `elasticlm simulate` writes")
    with claim(options.output, overwrite=options.overwrite):
        from elasticlm.benchmarks.simulator_agreement import compare_with_server

        return compare_with_server(options)


def _options() -> argparse.ArgumentParser:
    options = parser("elasticlm validate", "Compare the policy simulator with runs of the real server.")
    served = options.add_mutually_exclusive_group(required=True)
    served.add_argument("--archive", type=Path, metavar="FILE.mar", help="what was served; also of a pipeline")
    served.add_argument("--model", type=Path, metavar="DIR", help="artifact that was served: its latency.csv")
    options.add_argument("--runs", type=Path, nargs="+", required=True, metavar="DIR", help="outputs of "
                         "`elasticlm simulate` with --arrivals and --load; one worker, batch size 1")  # fmt: skip
    options.add_argument("--output", type=Path, required=True, metavar="FILE", help="JSON file to write")
    options.add_argument("--overwrite", action="store_true", help="replace the output file")
    return options


if __name__ == "__main__":
    run_in_checkout("validate")
