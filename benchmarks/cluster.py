"""``elasticlm cluster``: load, the loss of a node, and scaling by demand on a Ray cluster of its own.

    elasticlm cluster --archive model_store/mini.mar --data pydoc --output out/cluster

All nodes run on this machine, each with one replica and an ingress; the head receives all requests. Three parts:

load      Poisson arrivals at half of the measured capacity of level 100: how many are answered within T?
loss      The same, and halfway all processes of a node that is not the head are killed at once. What becomes of the
          requests, when does the other replica answer, and is any vector wrong?
scaling   One node. A rush of 1.5 times one replica's capacity, then calm. When do a second replica come and go, by
          demand and by Ray Serve's own rule, which looks at the number of requests?

With short queries, Ray's own processes take more of a small machine than the replicas do; scaling then needs
`--workload related --tokens 128`, so that the replicas are what is overloaded.

Writes cluster.json, and replicas.png if scaling is measured. Ends with exit code 1 if a goal is missed: 99% within T
under load, an answer or a status for every request, the other replica within 10 s, no vector off by more than 1e-5.
"""

import argparse
from pathlib import Path

from elasticlm.arguments import at_least, non_negative_int, positive_float, positive_int
from elasticlm.command import parser, run_in_checkout
from elasticlm.files import claim, require_file
from elasticlm.retrieval.data_specs import check_spec

PARTS = ("load", "loss", "scaling")


def main(argv: list[str] | None = None) -> int:
    """Entry point; the work is in elasticlm.benchmarks.cluster_run."""
    options = _options().parse_args(argv)
    require_file(options.archive)
    check_spec(options.data)
    with claim(options.output, overwrite=options.overwrite):
        from elasticlm.benchmarks.cluster_run import run_cluster

        return run_cluster(options)


def _options() -> argparse.ArgumentParser:
    options = parser("elasticlm cluster", "Measure load, the loss of a node, and scaling on a Ray cluster of its own.")
    options.add_argument("--archive", type=Path, required=True, metavar="FILE.mar", help="what is served")
    options.add_argument("--data", required=True, metavar="SPEC", help="whose queries are sent")
    options.add_argument("--split", default="test", help="whose queries are sent")
    options.add_argument("--workload", default="query", help="query or related, as in `elasticlm simulate`")
    options.add_argument("--tokens", type=positive_int, metavar="N", help="as in `elasticlm simulate`")
    options.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what is measured")
    options.add_argument("--nodes", type=at_least(2), default=2, help="nodes of the cluster")
    options.add_argument("--budget", type=positive_float, metavar="MS", help="latency budget T "
                         "(default: 10 times the time that a replica needs per request at level 100)")  # fmt: skip
    options.add_argument("--load", type=positive_float, default=0.5, metavar="SHARE", help="of the capacity")
    options.add_argument("--duration", type=positive_float, default=60.0, metavar="S", help="seconds of load and loss, "
                         "and half of the scaling's")  # fmt: skip
    options.add_argument("--delay", type=positive_float, default=30.0, metavar="S", help="how long the demand has to "
                         "be above or below its limit before the number of replicas changes")  # fmt: skip
    options.add_argument("--seed", type=non_negative_int, default=0, help="of queries and arrivals")
    options.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder to write")
    options.add_argument("--overwrite", action="store_true", help="replace the output folder")
    return options


if __name__ == "__main__":
    run_in_checkout("cluster")
