"""``elasticlm export``: one level as its own artifact, or ONNX graphs of all levels."""

from elasticlm import command
from elasticlm.backend import PRECISIONS
from elasticlm.errors import InputError
from elasticlm.files import claim
from elasticlm.model.structure import parse_level
from elasticlm.retrieval.data_specs import check_spec
from elasticlm.trainer.inputs import check_model


def main(argv: list[str] | None = None) -> None:
    parser = command.parser("elasticlm export", "Write one level as its own artifact, or one ONNX graph per level.")
    parser.add_argument("--model", required=True, metavar="DIR", help="elastic model")
    parser.add_argument("--level", metavar="K", help="the level to take out alone, such as 30; needs --output")
    parser.add_argument("--output", metavar="DIR", help="artifact folder to write the level into")
    parser.add_argument("--overwrite", action="store_true", help="replace the output")
    parser.add_argument("--onnx", nargs="+", choices=PRECISIONS["onnx"], metavar="fp32|int8", help="write one graph "
                        "per level for ONNX Runtime into DIR/onnx, each compared with PyTorch")  # fmt: skip
    parser.add_argument("--top-precision", default="fp32", choices=PRECISIONS["onnx"], help="precision of level 100 "
                        "among the int8 graphs, if it is the teacher")  # fmt: skip
    parser.add_argument("--data", default="pydoc", metavar="SPEC", help="queries and passages that the graphs are "
                        "compared on: beir:DIR, text:FILE, hf:NAME[/CONFIG] or pydoc")  # fmt: skip
    parser.add_argument("--split", default="dev", help="split of the data")
    args = parser.parse_args(argv)
    if bool(args.level) == bool(args.onnx) or bool(args.level) != bool(args.output):
        raise InputError("expected --level K --output DIR for a level alone, or --onnx fp32 int8 for graphs")
    if args.level:
        parse_level(args.level)
    check_model("--model", args.model)
    if args.onnx:
        check_spec(args.data)
    with claim(*([args.output] if args.level else []), overwrite=args.overwrite):
        from elasticlm.trainer.exporting import export_graphs, export_level

        (export_level if args.level else export_graphs)(args)
