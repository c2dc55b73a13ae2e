"""``make soak``: ten minutes of rushes and pauses, good requests and bad ones; do memory, files or threads grow?

    elasticlm soak --archive model_store/mini.mar --minutes 10 --output out/soak

Users come and go in waves, so that levels rise and fall; one request in twenty is malformed, one in fifty breaks its
connection. Every few seconds each process of the server is asked for its memory (PSS, MiB), open files and threads.
Writes soak.csv, soak.png and summary.json; exits with 1 where something grew after the first third of the time.
"""

import argparse
from pathlib import Path

from elasticlm.arguments import positive_float, positive_int
from elasticlm.command import parser, run_in_checkout
from elasticlm.errors import InputError
from elasticlm.files import claim, require_file


def main(argv: list[str] | None = None) -> int:
    """Entry point; the work is in elasticlm.benchmarks.soak_run."""
    options = _options().parse_args(argv)
    require_file(options.archive)
    if options.minutes > 600:
        raise InputError(f"--minutes {options.minutes:g}: expected at most 600")
    with claim(options.output, overwrite=options.overwrite):
        from elasticlm.benchmarks.soak_run import run_soak

        return run_soak(options)


def _options() -> argparse.ArgumentParser:
    options = parser("elasticlm soak", "Load the real server for minutes and watch what grows.")
    options.add_argument("--archive", type=Path, required=True, help=".mar of an embedding model")
    options.add_argument("--minutes", type=positive_float, default=10.0, help="how long")
    options.add_argument("--users", type=positive_int, default=12, help="users at the height of a wave")
    options.add_argument("--policy", default="deadline", help="as in the simulation")
    options.add_argument("--budget", type=positive_float, default=200.0, metavar="MS", help="latency budget, ms")
    options.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder to write")
    options.add_argument("--overwrite", action="store_true", help="replace an existing output")
    return options


if __name__ == "__main__":
    run_in_checkout("soak")
