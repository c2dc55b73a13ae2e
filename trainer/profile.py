"""``elasticlm profile``: measure what each level of an artifact costs on this machine (latency.csv)."""

import argparse
from pathlib import Path

from elasticlm import command
from elasticlm.arguments import non_negative_float, positive_int
from elasticlm.backend import BACKENDS, PRECISIONS
from elasticlm.command import progress
from elasticlm.errors import InputError
from elasticlm.model.folder import LATENCY_FILE
from elasticlm.model.structure import level_name, parse_levels
from elasticlm.schedule import latency
from elasticlm.trainer.inputs import check_model


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = command.parser(
        "elasticlm profile", "Measure what each level of an artifact costs on this machine (latency.csv)."
    )
    parser.add_argument("--model", required=True, metavar="DIR", help=f"elastic model; its {LATENCY_FILE} is written")
    parser.add_argument("--levels", help="levels to measure (default: all)")
    parser.add_argument("--rows", default=_listed(latency.ROWS), help="sequences per batch")
    parser.add_argument("--tokens", help="padded lengths in tokens "
                        f"(default: {_listed(latency.TOKENS)} up to the model's limit, and the limit)")  # fmt: skip
    parser.add_argument("--threads", type=positive_int, default=1, help="threads of a server's worker")
    parser.add_argument("--backend", default="auto", choices=("auto", *BACKENDS), help="backend to measure; auto: "
                        "PyTorch, and ONNX Runtime in fp32 and in whatever else was exported")  # fmt: skip
    parser.add_argument("--precision", choices=PRECISIONS["onnx"], help="of ONNX graphs (default: every exported one)")
    parser.add_argument("--seconds", type=non_negative_float, default=2.0, help="time spent on a cell, in s")
    parser.add_argument("--min-runs", type=positive_int, default=20, help="minimum number of runs per cell; a "
                        "cell ends after 10 times --seconds in any case")  # fmt: skip
    args = parser.parse_args(argv)
    args.rows = _numbers("--rows", args.rows)
    args.tokens = _numbers("--tokens", args.tokens) if args.tokens else None
    return args


def main(argv: list[str] | None = None) -> None:
    """Entry point."""
    args = parse_args(argv)
    check_model("--model", args.model)
    profile(args)


def profile(args: argparse.Namespace) -> None:
    """Measure what the options name, write the table and print it; heavy imports begin here."""
    from elasticlm.backend.onnx_export import can_export
    from elasticlm.model.elastic_model import ElasticModel
    from elasticlm.schedule.profiling import default_lengths, measure

    if args.backend != "torch" and args.precision != "int8" and can_export():
        try_to_export(args.model)
    setups = chosen_setups(args.model, args.backend, args.precision)
    models = [ElasticModel.from_pretrained(args.model, backend=backend, precision=precision, threads=args.threads)
              for backend, precision in setups]  # fmt: skip
    levels = parse_levels(args.levels) if args.levels else models[0].levels
    for level in levels:
        models[0].structures[level]  # raises InputError for a level that the model does not have
    file, result, rows = Path(args.model) / LATENCY_FILE, [], []
    tokens = args.tokens or default_lengths(models[0])
    cells = len(models) * len(levels) * len(args.rows) * len(tokens)
    with progress(total=cells, desc="profile", unit="cell") as bar:
        for model in models:
            table = measure(model, levels=levels, rows=args.rows, tokens=tokens, threads=args.threads,
                                    seconds=args.seconds, min_runs=args.min_runs, on_cell=bar.update)  # fmt: skip
            table.write(file)
            setup = {"backend": table.setup.backend, "precision": table.setup.precision}
            rows += [setup | {"level": level_name(cell.level), "rows": cell.rows, "tokens": cell.tokens,
                              "mean ms": cell.mean_ms, "p95 ms": cell.p95_ms, "runs": cell.runs}
                     for cell in table.cells]  # fmt: skip
            means = {level_name(level): round(table.mean_ms(level), 3) for level in table.levels}
            result.append(setup | {"mean_ms": means})
    command.print_table(rows)
    grid = {"threads": args.threads, "rows": table.rows[0], "tokens": table.tokens[0]}
    embeddings, weights = models[0].weights_mib()
    command.say(f"memory: {weights:.0f} MiB of weights, of which {embeddings:.0f} MiB are word embeddings; all levels "
                "and workers share these (memory-mapped)")  # fmt: skip
    sizes = {"embeddings_mib": round(embeddings, 1), "weights_mib": round(weights, 1)}
    command.print_result({"output": str(file)} | grid | sizes | {"setups": result})


def try_to_export(artifact: str) -> None:
    """Make sure of graphs in fp32; a model of a kind that has none is measured without."""
    from elasticlm.backend.onnx_export import ensure_exported
    from elasticlm.model.elastic_model import ElasticModel

    model = ElasticModel.from_pretrained(artifact)
    try:
        ensure_exported(model, artifact, "fp32")
    except InputError as reason:
        command.say(f"no ONNX graphs: {reason}")


def chosen_setups(artifact: str, backend: str, precision: str | None) -> list[tuple[str, str]]:
    """Return the backends and precisions to measure: whatever is there, or what was asked for."""
    from elasticlm.backend.onnx_runtime import is_exported

    if backend == "torch" and precision not in (None, "fp32"):
        raise InputError(f"--backend torch --precision {precision}: PyTorch runs levels in fp32")
    exported = [name for name in PRECISIONS["onnx"] if precision in (None, name) and is_exported(artifact, name)]
    if not exported and (backend == "onnx" or precision == "int8"):
        return [("onnx", precision or "fp32")]  # loading says what is missing
    with_torch = backend == "torch" or (backend == "auto" and precision in (None, "fp32"))
    return [("torch", "fp32")] * with_torch + [("onnx", name) for name in exported if backend != "torch"]


def _numbers(option: str, text: str) -> tuple[int, ...]:
    try:
        numbers = tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError:
        numbers = (0,)
    if numbers[0] < 1:
        raise InputError(f"{option} {text}: expected whole numbers above 0, such as 1,8,32")
    return numbers


def _listed(numbers: tuple[int, ...]) -> str:
    return ",".join(map(str, numbers))
