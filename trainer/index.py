"""``python -m trainer index``: encode a corpus into a passage index with what encodes the model's passages."""

import time

from elasticlm import command
from elasticlm.errors import InputError
from elasticlm.files import refuse_existing
from elasticlm.retrieval.data import load_corpus
from elasticlm.retrieval.index import PassageIndex
from elasticlm.teacher import load_model, passage_encoder


def main(argv: list[str] | None = None) -> None:
    parser = command.parser("python -m trainer index", "Encode a corpus into a passage index.")
    parser.add_argument("--model", required=True, help="artifact folder, or a teacher's folder or hub name")
    parser.add_argument("--data", required=True, help="beir:DIR, text:FILE, hf:NAME[/CONFIG] or pydoc")
    parser.add_argument("--output", required=True, help="index folder to write")
    parser.add_argument("--teacher", help="where the artifact's teacher is, if not under the name in the artifact")
    parser.add_argument("--kind", default="Flat", help="FAISS factory string, for example Flat or IVF64,Flat")
    parser.add_argument("--batch-size", type=int, default=32, help="passages encoded at once")
    parser.add_argument("--seed", type=int, default=0, help="seed of the kinds that are trained")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing output")
    args = parser.parse_args(argv)

    started = time.perf_counter()
    refuse_existing(args.output, overwrite=args.overwrite)
    if args.batch_size < 1:
        raise InputError(f"--batch-size {args.batch_size}: expected 1 or more passages")
    corpus = load_corpus(args.data)
    encoder = passage_encoder(load_model(args.model), args.teacher)
    command.say(f"{args.data}: encoding {len(corpus.ids):,} passages")
    vectors = encoder.embed(corpus.passages, kind="passage", batch_size=args.batch_size, show_progress=True).numpy()
    index = PassageIndex.build(
        vectors,
        corpus.ids,
        fingerprint=encoder.fingerprint(),
        corpus_sha256=corpus.sha256,
        kind=args.kind,
        seed=args.seed,
    )
    index.save(args.output, overwrite=args.overwrite)
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
