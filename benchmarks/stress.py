"""``elasticlm stress``: what becomes of requests under more load than any level carries, and while things break.

    elasticlm stress --archive model_store/mini.mar --data pydoc --index out/index --output out/stress

The capacity is the best goodput of the smallest level alone, over several offered loads: requests per second that it
answers within T. It is measured again around each load, since machines are not equally fast all the time. Under 1.5 and
3 times that for a minute each, the archive's own policy should keep its goodput, and answer at the largest level again
soon after. Then a rush of twice the largest level's capacity, once for each fault: the probe off, slow or answered by
something else, tokens rotated, X-Request-Start wrong, the worker slowed to half.

Before it is measured, every server serves traffic at the smallest level's capacity for a while, until Java has compiled
what it runs most.

Writes stress.json. Ends with exit code 1 if a goal is missed: goodput of 85% of the capacity, the 99th percentile of
what is answered within T, the largest level within 2 s after the load, 95% in time with every fault.
"""

import argparse
from pathlib import Path

from elasticlm.arguments import non_negative_int, positive_float, positive_int
from elasticlm.command import parser, run_in_checkout
from elasticlm.files import claim, require_file
from elasticlm.retrieval.data_specs import check_spec


def main(argv: list[str] | None = None) -> int:
    """Entry point; the work is in elasticlm.benchmarks.stress_run."""
    options = _options().parse_args(argv)
    require_file(options.archive)
    check_spec(options.data)
    with claim(options.output, overwrite=options.overwrite):
        from elasticlm.benchmarks.stress_run import run_stress

        return run_stress(options)


def _options() -> argparse.ArgumentParser:
    options = parser("elasticlm stress", "Measure overload and faults on a TorchServe of its own.")
    options.add_argument("--archive", type=Path, required=True, metavar="FILE.mar", help="what is served")
    options.add_argument("--data", required=True, metavar="SPEC", help="whose queries are sent")
    options.add_argument("--split", default="test", help="whose queries are sent")
    options.add_argument("--tokens", type=positive_int, metavar="N", help="as in `elasticlm simulate`")
    options.add_argument("--workload", default="related", help="query or related, as in `elasticlm simulate`")
    options.add_argument("--policy", default="deadline", help="the policy that is tested")
    options.add_argument(
        "--budget", type=positive_float, metavar="MS", help="latency budget T (default: the archive's)"
    )
    options.add_argument("--overload", nargs="*", type=positive_float, default=[1.5, 3.0], metavar="TIMES",
                         help="offered loads, in capacities of the smallest level")  # fmt: skip
    options.add_argument("--faults", nargs="*", default=None, metavar="NAME", help="probe-off, probe-slow, "
                         "foreign-port, tokens, start-wrong, half-speed (default: all)")  # fmt: skip
    options.add_argument("--duration", type=positive_float, default=60.0, metavar="S", help="seconds per load")
    options.add_argument("--pin", action="store_true", help="as in `elasticlm simulate`: workers on cores of their own")
    options.add_argument("--seed", type=non_negative_int, default=0, help="of queries, pauses and arrivals")
    options.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder to write")
    options.add_argument("--overwrite", action="store_true", help="replace the output folder")
    return options


if __name__ == "__main__":
    run_in_checkout("stress")
