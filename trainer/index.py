"""``elasticlm index``: encode a corpus into a passage index with what encodes the model's passages.

Passages are tokenised and encoded in blocks; neither they nor their vectors need to fit in memory. An interrupted run
continues where it stopped: the vectors of each block are kept next to the output (OUTPUT.vectors) until it is complete.
A block's file is named by the model and the passages, so that blocks of another model or of other data are never used.

With ``--engine ray`` the workers of a Ray cluster encode and write the index in shards (OUTPUT.shards until all are
there).
"""

import argparse
import importlib.util
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from elasticlm import command
from elasticlm.arguments import non_negative_int, positive_int
from elasticlm.errors import InputError
from elasticlm.files import claim, remove_folder
from elasticlm.trainer.inputs import add_teacher_options, check_data, check_model, teacher_settings

if TYPE_CHECKING:
    from elasticlm.model.elastic_model import ElasticModel
    from elasticlm.retrieval.corpus import Corpus
    from elasticlm.retrieval.passage_index import PassageIndex

ENGINES = ("local", "ray")
RAY_OPTIONS = ("shard_size", "workers", "address")
SHARD_SIZE = 100_000  # passages; a worker takes some minutes to hours for one, and an interrupted run loses one each


def main(argv: list[str] | None = None) -> None:
    parser = command.parser(
        "elasticlm index",
        "Encode a corpus into a passage index. An interrupted run continues when it is started again.",
    )
    parser.add_argument("--model", required=True, help="artifact folder, or a teacher's folder or hub name")
    parser.add_argument("--data", required=True, help="beir:DIR, dpr:DIR, text:FILE, hf:NAME[/CONFIG] or pydoc")
    parser.add_argument("--output", required=True, help="index folder to write")
    parser.add_argument("--teacher", help="where the artifact's teacher is, if not under the name in the artifact")
    add_teacher_options(parser, "--model")
    parser.add_argument("--kind", default="Flat", help="FAISS factory string, for example Flat or IVF64,Flat")
    parser.add_argument("--seed", type=non_negative_int, default=0, help="seed of the kinds that are trained")
    parser.add_argument("--engine", choices=ENGINES, default="local", help="local: this process, or those of torchrun; "
                        "ray: workers of a Ray cluster, which write the index in shards")  # fmt: skip
    parser.add_argument("--shard-size", type=positive_int, metavar="PASSAGES", help="with --engine ray: most passages "
                        f"per shard (default: {SHARD_SIZE:,})")  # fmt: skip
    parser.add_argument("--workers", type=positive_int, metavar="N", help="with --engine ray: workers, each with a "
                        "model of its own (default: one per CPU of the cluster)")  # fmt: skip
    parser.add_argument("--address", metavar="HOST:PORT", help="with --engine ray: the cluster's head, or auto "
                        "(default: RAY_ADDRESS; without it, Ray runs on this machine during the run)")  # fmt: skip
    parser.add_argument("--overwrite", action="store_true", help="replace an existing output")
    args = parser.parse_args(argv)

    check_model("--model", args.model)
    check_data([args.data])
    check_engine(args)
    with claim(args.output, overwrite=args.overwrite):
        build(args)


def check_engine(args: argparse.Namespace) -> None:
    """Check the options of the engine and fill in their defaults. Raises InputError where they do not go together."""
    if args.engine == "local":
        given = [f"--{name.replace('_', '-')}" for name in RAY_OPTIONS if getattr(args, name) is not None]
        if given:
            raise InputError(f"{given[0]} is for --engine ray, and the engine is local")
        return
    if importlib.util.find_spec("ray") is None:
        raise InputError("--engine ray needs Ray: pip install 'elasticlm[train,ray]'")
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise InputError("--engine ray starts its own workers: start it without torchrun")
    args.shard_size = args.shard_size or SHARD_SIZE
    args.address = args.address or os.environ.get("RAY_ADDRESS") or None
    if args.address and args.address.startswith("ray://"):
        raise InputError(f"--address {args.address}: start the command on a machine of the cluster, and give HOST:PORT "
                         "of its head, or auto")  # fmt: skip


def build(args: argparse.Namespace) -> None:
    """Encode the corpus, write the index and print what it holds; heavy imports begin here."""
    started = time.perf_counter()
    from elasticlm.model.teacher import load_model, passage_encoder
    from elasticlm.retrieval.data_specs import load_corpus
    from elasticlm.retrieval.faiss_files import empty_index
    from elasticlm.retrieval.passage_ids import check_ids

    corpus = load_corpus(args.data)
    sha256, corpus = corpus.sha256, corpus.findable
    if not corpus.ids:
        raise InputError(f"{args.data}: every passage is empty")
    model = load_model(args.model, **teacher_settings(args))
    encoder = passage_encoder(model, args.teacher)
    check_ids(corpus.ids)  # what the index cannot be made of is refused before the passages are encoded
    empty_index(encoder.config.vector_size, args.kind)
    command.say(f"{args.data}: encoding {len(corpus.ids):,} passages")
    if args.engine == "ray":
        index = encode_on_ray(args, corpus, sha256, encoder, args.teacher or model.config.teacher.name)
    elif (found := encode_here(args, corpus, sha256, encoder)) is not None:
        index = found
    else:
        return
    seconds = round(time.perf_counter() - started, 1)
    command.print_table([{"index": args.output, "passages": len(index), "dim": index.dim, "seconds": seconds}])
    command.print_result(
        {
            "index": args.output,
            "count": len(index),
            "dim": index.dim,
            "fingerprint": index.fingerprint,
            "corpus_sha256": index.corpus_sha256,
            "seconds": seconds,
        }
    )


def encode_here(
    args: argparse.Namespace, corpus: "Corpus", corpus_sha256: str, encoder: "ElasticModel"
) -> "PassageIndex | None":
    """Encode the passages in this process, or in those of torchrun, and write the index; None in all but the first."""
    from elasticlm.retrieval.passage_index import PassageIndex
    from elasticlm.trainer.processes import Processes
    from elasticlm.trainer.stored_vectors import stored_vectors
    from elasticlm.trainer.training_texts import UntokenizedPassages

    texts = UntokenizedPassages(encoder, corpus.passages)
    unfinished = Path(args.output).with_name(Path(args.output).name + ".vectors")  # what an interrupted run has done
    processes = Processes("fp32")
    vectors = stored_vectors(encoder, texts, processes, desc="passages", folder=unfinished)
    if not processes.is_main:
        return None
    index = PassageIndex.write(
        args.output,
        vectors.blocks(),
        corpus.ids,
        dim=encoder.config.vector_size,
        fingerprint=encoder.fingerprint(),
        corpus_sha256=corpus_sha256,
        kind=args.kind,
        seed=args.seed,
        overwrite=args.overwrite,
    )
    remove_folder(unfinished)
    return index


def encode_on_ray(
    args: argparse.Namespace, corpus: "Corpus", corpus_sha256: str, encoder: "ElasticModel", teacher: str | None
) -> "PassageIndex":
    """Have Ray's workers write the shards that are missing, and make their folder the output."""
    from elasticlm.trainer.sharded_index import planned, unfinished_folder

    plan = planned(args, corpus, corpus_sha256, encoder, teacher)
    unfinished = unfinished_folder(args.output)
    missing = [shard for shard in plan.shards if not plan.is_written(shard)]
    if len(missing) < len(plan.shards):
        command.say(f"passages: {len(plan.shards) - len(missing):,} of {len(plan.shards):,} shards have been written "
                    "before")  # fmt: skip
    elif unfinished.is_dir():
        command.say(f"{unfinished}: the shards there are of other data, another model or other options; starting anew")
    if missing:
        from elasticlm.trainer.ray_workers import write_shards

        write_shards(plan, missing, address=args.address, workers=args.workers)
    index = plan.publish(args.output, overwrite=args.overwrite)
    remove_folder(unfinished)
    return index
