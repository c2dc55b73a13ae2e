"""``elasticlm evaluate``: how well every level retrieves, reranks or classifies, compared with the teacher."""

import argparse
from pathlib import Path

from elasticlm import command
from elasticlm.arguments import positive_int
from elasticlm.backend import BACKENDS, PRECISIONS
from elasticlm.errors import InputError
from elasticlm.files import refuse_existing
from elasticlm.model.folder import QUALITY_FILE
from elasticlm.model.structure import parse_levels
from elasticlm.schedule.cascade import PAIRS_FILE
from elasticlm.trainer.inputs import check_data, check_files, check_model


def main(argv: list[str] | None = None) -> None:
    """Entry point; the work is in elasticlm.trainer.evaluation."""
    args = parse_args(argv)
    drawing, pairs_file = Path(args.output).with_suffix(".png"), Path(args.output).with_name(PAIRS_FILE)
    for output in filter(None, (args.output, args.run_dir, *((drawing, pairs_file) if args.matrix else ()))):
        refuse_existing(output, overwrite=args.overwrite)
    for option in ("model", "teacher", "retriever"):
        if getattr(args, option):
            check_model(f"--{option}", getattr(args, option))
    check_data([args.data])
    check_files(args)
    from elasticlm.trainer.evaluation.measuring import evaluate

    evaluate(args)


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Return the options. Raises InputError where they do not go together."""
    parser = command.parser("elasticlm evaluate", "Measure every level on a split, compared with the teacher.")
    parser.add_argument("--model", required=True, help="artifact folder, or a teacher's folder or hub name")
    parser.add_argument("--data", required=True, help="beir:DIR, text:FILE, hf:NAME[/CONFIG] or pydoc; of a classifier "
                        "glue:DIR or hf:NAME[/CONFIG]")  # fmt: skip
    parser.add_argument("--split", default="test", help="split whose queries are judged")
    parser.add_argument("--levels", help="levels to measure, such as 50,10 (all of the artifact's)")
    parser.add_argument("--teacher", help="what retention is measured against (the teacher named in the artifact)")
    parser.add_argument("--index", help="index folder, or a FAISS file made elsewhere; else passages are encoded now")
    parser.add_argument("--ids", help="passage ids of a FAISS file made elsewhere, one a line, in row order")
    parser.add_argument("--output", required=True, help="JSON file to write")
    parser.add_argument("--run", metavar="FILE", help="reranker: a retriever's run in TREC form to rerank (the set's "
                        "judged candidates, else BM25's)")  # fmt: skip
    parser.add_argument(
        "--depth", type=positive_int, default=20, help="reranker: passages of the first stage to rerank"
    )
    parser.add_argument(
        "--max-queries", type=positive_int, metavar="N", help="reranker: at most so many, drawn at random"
    )
    parser.add_argument("--calibrate", action="store_true", help="reranker: fit on this split how likely a score of "
                        "each level is that of a relevant passage, and write it into the artifact")  # fmt: skip
    parser.add_argument("--fuse", action="store_true", help="reranker: fit on this split how much the first stage "
                        "should count beside each level's scores, and write it into the artifact")  # fmt: skip
    parser.add_argument("--matrix", action="store_true", help="reranker: every pair of its levels and those of "
                        "--retriever, whose best passages it reranks; beside --output a heat map, FILE.png, and "
                        f"{PAIRS_FILE}, for elasticlm.handlers.archive")  # fmt: skip
    parser.add_argument("--retriever", metavar="DIR", help="--matrix: what retrieves")
    parser.add_argument("--retriever-levels", help="--matrix: levels of the retriever (all)")
    parser.add_argument("--run-dir", help="folder for the TREC runs, one a level")
    parser.add_argument("--save", action="store_true", help=f"also write the result into the artifact's {QUALITY_FILE}")
    parser.add_argument("--batch-size", type=positive_int, default=32, help="queries encoded at once")
    parser.add_argument("--backend", default="torch", choices=BACKENDS, help="what runs the levels; passages are "
                        "encoded in fp32 all the same")  # fmt: skip
    parser.add_argument("--precision", default="fp32", choices=PRECISIONS["onnx"], help="of ONNX graphs")
    parser.add_argument("--seed", type=int, default=0, help="seed of the bootstrap")
    parser.add_argument("--overwrite", action="store_true", help="replace existing outputs")
    args = parser.parse_args(argv)
    fitting = [f"--{option}" for option in ("calibrate", "fuse") if getattr(args, option)]
    if fitting and args.split == "test":
        raise InputError(f"{fitting[0]} fits on the split that is measured: choose another than test, such as dev")
    if args.precision not in PRECISIONS[args.backend]:
        raise InputError(f"--precision {args.precision}: the backend {args.backend} runs levels in fp32")
    for levels in filter(None, (args.levels, args.retriever_levels)):
        parse_levels(levels)
    check_matrix(args)
    return args


def check_matrix(args: argparse.Namespace) -> None:
    """Raise InputError where --matrix and other options do not go together."""
    if args.matrix != bool(args.retriever) or (args.retriever_levels and not args.matrix):
        raise InputError("--matrix, --retriever and --retriever-levels go together")
    if args.matrix and (Path(args.output).suffix != ".json" or Path(args.output).name == PAIRS_FILE):
        raise InputError(
            f"--output {args.output}: expected FILE.json, beside which {PAIRS_FILE} and FILE.png are written"
        )
    others = ("calibrate", "fuse", "run", "run_dir", "save")
    if args.matrix and (given := next((name for name in others if getattr(args, name)), None)):
        raise InputError(f"--{given.replace('_', '-')} does not go with --matrix")
