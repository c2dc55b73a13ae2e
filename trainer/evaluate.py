"""``elasticlm evaluate``: measure how well every level retrieves, reranks or classifies, compared with the teacher."""

import argparse
from pathlib import Path

from elasticlm import command
from elasticlm.arguments import non_negative_int, positive_int
from elasticlm.backend import BACKENDS, PRECISIONS
from elasticlm.errors import InputError
from elasticlm.files import claim
from elasticlm.model.folder import QUALITY_FILE
from elasticlm.model.structure import parse_levels
from elasticlm.schedule.cascade import PAIRS_FILE
from elasticlm.trainer.inputs import add_teacher_options, check_data, check_files, check_model


def main(argv: list[str] | None = None) -> None:
    """Entry point; elasticlm.trainer.evaluation does the work."""
    args = parse_args(argv)
    drawing, pairs_file = Path(args.output).with_suffix(".png"), Path(args.output).with_name(PAIRS_FILE)
    outputs = filter(None, (args.output, args.run_dir, *((drawing, pairs_file) if args.matrix else ())))
    for option in ("model", "teacher", "retriever"):
        if getattr(args, option):
            check_model(f"--{option}", getattr(args, option))
    check_data([args.data, *filter(None, [args.corpus])])
    check_files(args)
    with claim(*outputs, overwrite=args.overwrite):
        from elasticlm.trainer.evaluation.measuring import evaluate

        evaluate(args)


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Return the options. Raises InputError if they cannot be combined."""
    parser = command.parser("elasticlm evaluate", "Measure every level on a split, compared with the teacher.")
    parser.add_argument("--model", required=True, help="artifact folder, or a teacher's folder or hub name")
    parser.add_argument("--data", required=True, help="beir:DIR, dpr:DIR, msmarco-docs:DIR, text:FILE, "
                        "hf:NAME[/CONFIG] or pydoc; for a classifier: glue:DIR or hf:NAME[/CONFIG]")  # fmt: skip
    parser.add_argument("--corpus", metavar="SPEC", help="passages to search, if they are those of another data set, "
                        "such as hf:Tevatron/wikipedia-nq-corpus (default: those of --data)")  # fmt: skip
    parser.add_argument("--split", default="test", help="split to measure")
    parser.add_argument("--levels", help="levels to measure, such as 50,10 (default: all levels)")
    parser.add_argument("--teacher", help="model for measuring retention (default: the teacher named in the artifact)")
    add_teacher_options(parser, "--model")
    parser.add_argument("--index", help="index folder or FAISS file (default: encode the passages)")
    parser.add_argument("--ids", help="passage ids of a FAISS file, one per line in row order")
    parser.add_argument("--output", required=True, help="JSON file to write")
    parser.add_argument("--run", metavar="FILE", help="reranker: run of a retriever in TREC format, perhaps .gz, to "
                        "rerank (default: the judged candidates of the data if it has any, else the top of BM25)"
                        )  # fmt: skip
    parser.add_argument(
        "--depth",
        type=positive_int,
        default=20,
        help="reranker: passages of the first stage to rerank; 100 for the "
        "paper's RR@100, since passages beyond this depth count as not found",
    )
    parser.add_argument(
        "--max-queries", type=positive_int, metavar="N", help="reranker: maximum number of queries, sampled at random"
    )
    parser.add_argument("--calibrate", action="store_true", help="reranker: fit the probability of relevance as "
                        "a function of each level's score on this split, and write it into the artifact")  # fmt: skip
    parser.add_argument("--fuse", action="store_true", help="reranker: fit the weight of the first stage's score "
                        "relative to each level's score on this split, and write it into the artifact")  # fmt: skip
    parser.add_argument("--matrix", action="store_true", help="reranker: measure every pair of its levels and those "
                        "of --retriever; also writes a heat map, FILE.png, and "
                        f"{PAIRS_FILE}, for `elasticlm archive`, next to --output")  # fmt: skip
    parser.add_argument("--retriever", metavar="DIR", help="--matrix: artifact folder of the retriever")
    parser.add_argument("--retriever-levels", help="--matrix: levels of the retriever (default: all)")
    parser.add_argument("--keep-self-hits", action="store_true", help="let queries that stand in the corpus under "
                        "their own id find themselves (default: such hits are dropped)")  # fmt: skip
    parser.add_argument("--run-dir", help="folder for the TREC runs, one per level")
    parser.add_argument("--save", action="store_true", help=f"also write the result into the artifact's {QUALITY_FILE}")
    parser.add_argument("--batch-size", type=positive_int, default=32, help="queries encoded at once")
    parser.add_argument("--backend", default="torch", choices=BACKENDS, help="backend that runs the levels; passages "
                        "are always encoded in fp32")  # fmt: skip
    parser.add_argument("--precision", default="fp32", choices=PRECISIONS["onnx"], help="precision of the ONNX graphs")
    parser.add_argument("--seed", type=non_negative_int, default=0, help="seed of the bootstrap")
    parser.add_argument("--overwrite", action="store_true", help="replace existing outputs")
    args = parser.parse_args(argv)
    fitting = [f"--{option}" for option in ("calibrate", "fuse") if getattr(args, option)]
    if fitting and args.split == "test":
        raise InputError(
            f"{fitting[0]} fits on the split that is measured: choose a split other than test, such as dev"
        )
    if args.precision not in PRECISIONS[args.backend]:
        raise InputError(f"--precision {args.precision}: the backend {args.backend} runs levels in fp32")
    for levels in filter(None, (args.levels, args.retriever_levels)):
        parse_levels(levels)
    check_matrix(args)
    return args


def check_matrix(args: argparse.Namespace) -> None:
    """Raise InputError if --matrix cannot be combined with the other options."""
    if args.matrix != bool(args.retriever) or (args.retriever_levels and not args.matrix):
        raise InputError("--matrix, --retriever and --retriever-levels go together: give --matrix and --retriever")
    if args.matrix and (Path(args.output).suffix != ".json" or Path(args.output).name == PAIRS_FILE):
        raise InputError(
            f"--output {args.output}: expected FILE.json; {PAIRS_FILE} and FILE.png are written next to it"
        )
    others = ("calibrate", "fuse", "run", "run_dir", "save")
    if args.matrix and (given := next((name for name in others if getattr(args, name)), None)):
        raise InputError(f"--{given.replace('_', '-')} does not go with --matrix: remove one of them")
