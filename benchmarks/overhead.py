"""``elasticlm overhead``: what a request costs end to end, compared with the bare forward pass.

    elasticlm overhead --archive model_store/mini.mar --output out/overhead

One client, one request at a time, to the real TorchServe: an embedding archive gets a query of 16 tokens, a reranker
one query with 8 passages of 128 tokens each pair. After every answer the same batch, tokenised before, runs through the
same level in this process by the same backend, so that both sides of the ratio see the same machine.

Writes overhead.csv: where the time of a request goes, stage by stage, and the bare pass. ``--most RATIO`` ends with
exit code 1 where the whole takes more than so many bare passes.

``--switching`` asks instead what it costs to change the level at every request, the largest and the smallest in turn,
compared with staying on each: a budget in the request's own header decides, by a table in which they lie far apart.
``--most RATIO`` then is the limit of that ratio.
"""

import argparse
from pathlib import Path

from elasticlm.arguments import positive_float, positive_int
from elasticlm.benchmarks.servers import SERVERS
from elasticlm.command import parser, run_in_checkout
from elasticlm.files import claim, require_file


def main(argv: list[str] | None = None) -> int:
    """Entry point; the work is in elasticlm.benchmarks.overhead_timing."""
    options = _options().parse_args(argv)
    require_file(options.archive)
    with claim(options.output, overwrite=options.overwrite):
        from elasticlm.benchmarks.overhead_timing import time_overhead

        return time_overhead(options)


def _options() -> argparse.ArgumentParser:
    options = parser("elasticlm overhead", "Time whole requests compared with the bare forward pass.")
    options.add_argument("--archive", type=Path, required=True, metavar="FILE.mar", help="an encoder or a reranker")
    options.add_argument("--server", choices=SERVERS, default="torchserve", help="what serves it")
    options.add_argument("--level", metavar="K", help="the level that answers (default: the largest)")
    options.add_argument("--tokens", type=positive_int, metavar="N", help="tokens of a query, or of a pair "
                         "(default: 16, or 128)")  # fmt: skip
    options.add_argument("--requests", type=positive_int, default=200, help="requests that are timed, "
                         "with --switching of each kind and level")  # fmt: skip
    options.add_argument("--switching", action="store_true", help="what it costs to change the level at every request")
    options.add_argument("--most", type=positive_float, metavar="RATIO", help="fail above this ratio "
                         "of request to bare pass, "
                         "with --switching above this ratio of switching to staying")  # fmt: skip
    options.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder to write")
    options.add_argument("--overwrite", action="store_true", help="replace an existing output")
    return options


if __name__ == "__main__":
    run_in_checkout("overhead")
