"""``elasticlm index``: encode a corpus into a passage index with what encodes the model's passages.

Passages are tokenised and encoded in blocks; neither they nor their vectors need to fit in memory. An interrupted run
continues where it stopped: the vectors of each block are kept next to the output (OUTPUT.vectors) until it is complete.
A block's file is named by the model and the passages, so that blocks of another model or of other data are never used.
"""

import argparse
import time
from pathlib import Path

from elasticlm import command
from elasticlm.arguments import non_negative_int
from elasticlm.errors import InputError
from elasticlm.files import claim, remove_folder
from elasticlm.trainer.inputs import add_teacher_options, check_data, check_model, teacher_settings


def main(argv: list[str] | None = None) -> None:
    parser = command.parser(
        "elasticlm index",
        "Encode a corpus into a passage index. An interrupted run continues when it is started again.",
    )
    parser.add_argument("--model", required=True, help="artifact folder, or a teacher's folder or hub name")
    parser.add_argument("--data", required=True, help="beir:DIR, text:FILE, hf:NAME[/CONFIG] or pydoc")
    parser.add_argument("--output", required=True, help="index folder to write")
    parser.add_argument("--teacher", help="where the artifact's teacher is, if not under the name in the artifact")
    add_teacher_options(parser, "--model")
    parser.add_argument("--kind", default="Flat", help="FAISS factory string, for example Flat or IVF64,Flat")
    parser.add_argument("--seed", type=non_negative_int, default=0, help="seed of the kinds that are trained")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing output")
    args = parser.parse_args(argv)

    check_model("--model", args.model)
    check_data([args.data])
    with claim(args.output, overwrite=args.overwrite):
        build(args)


def build(args: argparse.Namespace) -> None:
    """Encode the corpus, write the index and print what it holds; heavy imports begin here."""
    started = time.perf_counter()
    from elasticlm.model.teacher import load_model, passage_encoder
    from elasticlm.retrieval.data_specs import load_corpus
    from elasticlm.retrieval.faiss_files import empty_index
    from elasticlm.retrieval.passage_ids import check_ids
    from elasticlm.retrieval.passage_index import PassageIndex
    from elasticlm.trainer.processes import Processes
    from elasticlm.trainer.stored_vectors import stored_vectors
    from elasticlm.trainer.training_texts import UntokenizedPassages

    corpus = load_corpus(args.data)
    sha256, corpus = corpus.sha256, corpus.findable
    if not corpus.ids:
        raise InputError(f"{args.data}: every passage is empty")
    encoder = passage_encoder(load_model(args.model, **teacher_settings(args)), args.teacher)
    dim = encoder.config.vector_size
    check_ids(corpus.ids)  # what the index cannot be made of is refused before the passages are encoded
    empty_index(dim, args.kind)
    command.say(f"{args.data}: encoding {len(corpus.ids):,} passages")
    texts = UntokenizedPassages(encoder, corpus.passages)
    unfinished = Path(args.output).with_name(Path(args.output).name + ".vectors")  # what an interrupted run has done
    processes = Processes("fp32")
    vectors = stored_vectors(encoder, texts, processes, desc="passages", folder=unfinished)
    if not processes.is_main:
        return
    index = PassageIndex.write(
        args.output,
        vectors.blocks(),
        corpus.ids,
        dim=dim,
        fingerprint=encoder.fingerprint(),
        corpus_sha256=sha256,
        kind=args.kind,
        seed=args.seed,
        overwrite=args.overwrite,
    )
    remove_folder(unfinished)
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
