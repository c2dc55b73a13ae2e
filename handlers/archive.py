"""``elasticlm archive``: pack an artifact, optionally its index, and the code that serves it into a TorchServe archive.

    elasticlm archive --model out/aligned --name mini --output model_store/

The archive holds elastic_handler.py, the package `elasticlm` with its handlers, `artifact/`, `index/` and
model-config.yaml, so that it can be served without a checkout. Parts that could not be served are rejected here.

With a reranker, the hits of searches are reranked. The archive then also holds `reranker/`, `passages/` and pairs.json:

    elasticlm archive --model out/retriever --index out/index --reranker out/reranker --pairs out/pairs.json \\
        --data beir:squad --name search --output model_store/
"""

import argparse
import re
from pathlib import Path

from elasticlm.arguments import positive_int
from elasticlm.backend import BACKENDS, PRECISIONS
from elasticlm.command import parser, run_in_checkout
from elasticlm.errors import InputError
from elasticlm.files import claim, require_file
from elasticlm.model.folder import CONFIG_FILE, LATENCY_FILE
from elasticlm.retrieval.data_specs import check_spec
from elasticlm.schedule.cascade import PAIRS_FILE
from elasticlm.schedule.policies import parse_policy
from elasticlm.serving.settings import PASSAGES, Settings


def main(argv: list[str] | None = None) -> None:
    """Entry point of ``elasticlm archive``; elasticlm.handlers.packing does the work."""
    options = _options().parse_args(argv)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", options.name):
        raise InputError(
            f"--name {options.name!r}: letters, digits, '_', '-' and '.' only, because it is part of the URL"
        )
    target = Path(options.output) / f"{options.name}.mar"
    for artifact in filter(None, (options.model, options.reranker)):
        require_file(Path(artifact) / CONFIG_FILE, "no such file; expected the folder of an elastic model")
        missing = f"no latency table; measure one with `elasticlm profile --model {artifact}`"
        require_file(Path(artifact) / LATENCY_FILE, missing)
    for file in filter(None, (options.ids, options.pairs)):
        require_file(file)
    if options.index and not Path(options.index).exists():
        raise InputError(f"--index {options.index}: no such file or folder")
    if options.data:
        check_spec(options.data)
    if options.policy:
        try:
            parse_policy(options.policy, default_budget_ms=1.0)
        except InputError as error:
            raise InputError(f"--policy: {error}") from None
    with claim(target, overwrite=options.overwrite):
        from elasticlm.handlers.packing import make_archive

        make_archive(options, target)


def _options() -> argparse.ArgumentParser:
    options = parser("elasticlm archive", "Pack an artifact for TorchServe.")
    options.add_argument("--model", required=True, metavar="DIR", help="artifact folder with its latency.csv")
    options.add_argument(
        "--name", required=True, help="name of the archive; by default also the model's name in the URL"
    )
    options.add_argument("--output", required=True, metavar="DIR", help="model store; NAME.mar is written there")
    options.add_argument("--index", metavar="DIR_OR_FAISS", help="index folder of `elasticlm index`, or a FAISS file "
                         "made by other software, with --ids and --data; required to answer searches")  # fmt: skip
    options.add_argument("--ids", metavar="FILE", help="passage ids of a FAISS file, one per line in row order")
    options.add_argument("--data", metavar="SPEC", help="corpus of the index; needed to check a FAISS file made by "
                         "other software, and with --reranker for the texts to rerank")  # fmt: skip
    options.add_argument("--reranker", metavar="DIR", help="artifact folder of a reranker with its latency.csv; "
                         "hits are reranked, and one budget covers both models")  # fmt: skip
    options.add_argument("--pairs", metavar="FILE", help="quality of each pair of retriever and reranker levels: the "
                         f"{PAIRS_FILE} of `elasticlm evaluate --matrix`")  # fmt: skip
    options.add_argument("--teacher", metavar="T", help="path of the artifact's teacher if it has moved (for the "
                         "same check)")  # fmt: skip
    options.add_argument("--policy", metavar="SPEC", help="deadline:t=250, slack:t=250,alpha=0.6, queue:t=250 or "
                         "fixed:50 (with --reranker fixed:50+10), t in ms (default: deadline with t = 5 times the "
                         "service time of the largest level)")  # fmt: skip
    options.add_argument("--passages", default=Settings.passages, choices=PASSAGES, help="texts to be embedded as "
                         "passages: refuse, or answer at the largest level whatever the load, which slows down the "
                         "queries beside them; needs a model that encodes its own passages")  # fmt: skip
    options.add_argument("--backend", default="auto", choices=("auto", *BACKENDS), help="backend that runs the levels; "
                         "auto: the fastest that `elasticlm profile` measured")  # fmt: skip
    options.add_argument("--precision", default="auto", choices=("auto", *PRECISIONS["onnx"]), help="precision of "
                         "weights and matrix products; int8 needs the backend onnx")  # fmt: skip
    options.add_argument(
        "--batch-size", type=positive_int, default=1, help="maximum number of requests per forward pass"
    )
    options.add_argument("--workers", type=positive_int, default=1, help="processes that share the queue")
    options.add_argument("--tokens", type=positive_int, metavar="N", help="length of typical requests, for the default "
                         "budget and the queue size (default: the shortest that was measured, of a reranker 8 pairs of "
                         "128)")  # fmt: skip
    options.add_argument("--max-batch-delay-ms", type=positive_int, default=1, metavar="MS",
                         help="ms that an incomplete batch waits for more requests")  # fmt: skip
    options.add_argument("--overwrite", action="store_true", help="replace NAME.mar")
    return options


if __name__ == "__main__":
    run_in_checkout("archive")
