"""``elasticlm signal``: how well the handler knows its queue, and what knowing costs.

    elasticlm signal --archive model_store/mini.mar --duration 20 --output out/signal

The same arrivals go through the real TorchServe with batches of 1 and 8 and with 1 and 2 workers, once with batch fill
alone and once with the management probe too; with the header X-Request-Start and without it. What the handler believed
(X-Elastic-Queue-Depth, the wait in Server-Timing) is compared with what the driver saw: a request waited from when it
was sent to when its batch was taken, and what had been sent but not taken by then stood behind it.

Writes signal.csv, one row per setting; long_queue.csv, the cost with 500 requests waiting; and breakdown.csv: where the
time of a single request on an idle server goes.
"""

import argparse
from pathlib import Path

from elasticlm.arguments import non_negative_int, positive_float
from elasticlm.command import parser, run_in_checkout
from elasticlm.files import claim, require_file


def main(argv: list[str] | None = None) -> None:
    """Entry point; the work is in elasticlm.benchmarks.signal_comparison."""
    options = _options().parse_args(argv)
    require_file(options.archive)
    with claim(options.output, overwrite=options.overwrite):
        from elasticlm.benchmarks.signal_comparison import compare_signals

        compare_signals(options)


def _options() -> argparse.ArgumentParser:
    options = parser("elasticlm signal", "Measure what the handler knows of its queue, and the cost.")
    options.add_argument("--archive", type=Path, required=True, metavar="FILE.mar", help="an embedding model")
    options.add_argument("--duration", type=positive_float, default=20.0, metavar="S", help="seconds per setting")
    options.add_argument("--seed", type=non_negative_int, default=0, help="of arrivals and queries")
    options.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder to write")
    options.add_argument("--overwrite", action="store_true", help="replace an existing output")
    return options


if __name__ == "__main__":
    run_in_checkout("signal")
