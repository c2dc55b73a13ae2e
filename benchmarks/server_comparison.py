"""``elasticlm servers``: the same load on TorchServe, Ray Serve and a peer, elastic and static.

    elasticlm servers --archive model_store/mini.mar --data pydoc --output out/servers

Open loops of rising rates are sent to each server, one after another on the same machine: the elastic archive under
`deadline` on TorchServe and on Ray Serve, and the largest level alone, which refuses nothing, on TorchServe and on
LitServe. ``--static`` names the archive for the latter two, for example one whose level 100 is int8.

Writes servers.json and servers.csv: requests per second that are answered within T.
"""

import argparse
from pathlib import Path

from elasticlm.arguments import non_negative_int, positive_float
from elasticlm.command import parser, run_in_checkout
from elasticlm.files import claim, require_file
from elasticlm.retrieval.data_specs import check_spec


def main(argv: list[str] | None = None) -> int:
    """Entry point; the work is in elasticlm.benchmarks.server_comparison_run."""
    options = _options().parse_args(argv)
    require_file(options.archive)
    if options.static:
        require_file(options.static)
    check_spec(options.data)
    with claim(options.output, overwrite=options.overwrite):
        from elasticlm.benchmarks.server_comparison_run import compare_servers

        return compare_servers(options)


def _options() -> argparse.ArgumentParser:
    options = parser("elasticlm servers", "Send the same load to TorchServe, Ray Serve and LitServe.")
    options.add_argument("--archive", type=Path, required=True, metavar="FILE.mar", help="the elastic archive")
    options.add_argument("--static", type=Path, metavar="FILE.mar", help="whose largest level is served alone "
                         "(default: the same archive)")  # fmt: skip
    options.add_argument("--data", required=True, metavar="SPEC", help="whose queries are sent")
    options.add_argument("--split", default="test", help="whose queries are sent")
    options.add_argument(
        "--budget", type=positive_float, metavar="MS", help="latency budget T (default: the archive's)"
    )
    options.add_argument("--loads", type=positive_float, nargs="+", default=[0.5, 1.0, 2.0, 4.0], metavar="SHARE",
                         help="offered loads, in capacities of level 100 on TorchServe")  # fmt: skip
    options.add_argument("--duration", type=positive_float, default=20.0, metavar="S", help="seconds per load")
    options.add_argument("--seed", type=non_negative_int, default=0, help="of queries and arrivals")
    options.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder to write")
    options.add_argument("--overwrite", action="store_true", help="replace the output folder")
    return options


if __name__ == "__main__":
    run_in_checkout("servers")
