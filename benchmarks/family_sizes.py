"""``elasticlm families``: what every level of each encoder family costs at base size.

    elasticlm families --output out/families

Weights are random, cut at random, and of the size of the family's well-known base model: this is about time and memory
alone. Each level runs tokenised batches without padding in PyTorch and on ONNX Runtime, in turns, on one thread.
Writes families.csv (one row per family and level: median ms per shape and engine; millions of parameters and MiB of
fp32 weights, with and without word embeddings) and families.md, the same as a table.
"""

import argparse
import csv
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from elasticlm import command
from elasticlm.arguments import non_negative_float
from elasticlm.command import progress, run_in_checkout
from elasticlm.errors import InputError
from elasticlm.files import claim, new_folder

if TYPE_CHECKING:
    from elasticlm.benchmarks.engines_timing import Run, Shape
    from elasticlm.model.elastic_model import ElasticModel
    from elasticlm.model.structure import Level
    from elasticlm.model.tokenizing import Tokenized

BASE = {
    "electra": {"embedding_size": 768, "hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12},
    "xlm-roberta": {"vocab_size": 250_002, "max_position_embeddings": 514},
}
"""Fields of the base model's configuration that are not the defaults of the family's own class."""
ROUNDS = 5
CALIBRATED_ON = (4, 32)
"""Rows and tokens of random words on which int8 is calibrated; an export takes real texts."""


def main(argv: list[str] | None = None) -> None:
    """Entry point."""
    parser = command.parser("elasticlm families", "What every level of each encoder family costs at base size.")
    parser.add_argument("--families", metavar="A,B", help="encoder families (default: all)")
    parser.add_argument("--levels", default="100,50,30,10", help="percentages of the prunable parameters")
    parser.add_argument("--shapes", default="1x16,8x128", metavar="ROWSxTOKENS,..", help="batches to time")
    parser.add_argument(
        "--seconds", type=non_negative_float, default=1.0, help="least time per level, engine and shape"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder for families.csv and .md")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing output")
    args = parser.parse_args(argv)
    with claim(args.output, overwrite=args.overwrite):
        measure(args)


def measure(args: argparse.Namespace) -> None:
    """Measure what the options name, write the files and print the table; heavy imports begin here."""
    import torch

    from elasticlm.benchmarks.engines_timing import Shape
    from elasticlm.machine import machine
    from elasticlm.model.families import FAMILIES
    from elasticlm.model.structure import parse_levels

    names = args.families.split(",") if args.families else sorted(FAMILIES)
    if unknown := sorted(set(names) - set(FAMILIES)):
        raise InputError(f"--families {unknown[0]!r}: expected some of {','.join(FAMILIES)}")
    levels, shapes = parse_levels(args.levels), [Shape.parse(text) for text in args.shapes.split(",")]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    with progress(total=len(names), desc="families", unit="family") as bar:
        for name in names:
            rows += rows_of(name, levels, shapes, args.seconds)
            bar.update()
    torch.set_num_threads(threads)
    with new_folder(args.output, overwrite=args.overwrite) as folder:
        with open(folder / "families.csv", "w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, rows[0].keys())
            writer.writeheader()
            writer.writerows(rows)
        (folder / "families.md").write_text(markdown(rows), "utf-8")
    command.print_table(rows)
    command.print_result({"output": str(args.output), "machine": machine(("torch", "onnxruntime")), "rows": rows})


def rows_of(name: str, levels: "tuple[Level, ...]", shapes: "list[Shape]", seconds: float) -> list[dict[str, Any]]:
    """Return one row per level of a family's random base model."""
    import numpy as np

    from elasticlm.benchmarks.engines_timing import Engine, time_rounds
    from elasticlm.model.structure import level_name

    model = random_model(name, levels)
    sizes = model.encoder.family.prunable_parameters
    words = model.encoder.words.weight.numel()
    rows = []
    with tempfile.TemporaryDirectory(prefix="families-") as folder:
        engines = backends(model, Path(folder))
        times: dict[str, dict[Engine, list[float]]] = {}
        for shape in shapes:
            runs = {Engine(level_name(level), *key): run_of(backend, shape, level, model.config.vocab_size)
                    for key, backend in engines.items() for level in levels}  # fmt: skip
            times[str(shape)] = time_rounds(runs, seconds=seconds, least=ROUNDS)
    for level in levels:
        prunable = sizes(model.config, model.structures[level])
        row: dict[str, Any] = {"family": name, "level": level_name(level)}
        row |= {"parameters_m": round(prunable / 1e6, 1), "weights_mib": round(prunable * 4 / 2**20)}
        row["embeddings_mib"] = round(words * 4 / 2**20)
        for name_of_shape, measured in times.items():
            for engine, precision in engines:
                ms = measured[Engine(level_name(level), engine, precision)]
                row[f"{name_of_shape} {engine} {precision}"] = round(float(np.median(ms)), 2)
        rows.append(row)
    return rows


def random_model(name: str, levels: "tuple[Level, ...]") -> "ElasticModel":
    """Return a family's base model with random weights, cut at random; it has no tokenizer that is of use."""
    import numpy as np
    import torch
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    from elasticlm.model.configuration import ElasticConfig, MaxTokens
    from elasticlm.model.elastic_model import ElasticModel
    from elasticlm.model.families import family_of
    from elasticlm.model.structure import WHOLE, ElasticStructure

    family = family_of(name)
    torch.manual_seed(0)
    theirs = family.class_named("Model")(family.class_named("Config")(**BASE.get(name, {})), **family.load_options)
    config = ElasticConfig(**family.config_fields(theirs.config))
    config.max_tokens = MaxTokens(*[family.longest(config)] * 3)
    whole = ElasticStructure({WHOLE: config.whole})
    config.levels = whole.to_json()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]")))
    model = ElasticModel.without_weights(config, tokenizer)
    model.load_state_dict(family.elastic_weights(theirs), assign=True)
    random, layers = np.random.default_rng(0), config.num_hidden_layers
    scores = [random.random((layers, units)) for units in (config.num_attention_heads, config.intermediate_size)]
    return model.cut(*ElasticStructure.from_scores(scores[0], scores[1], levels))


def backends(model: "ElasticModel", folder: Path) -> dict[tuple[str, str], Any]:
    """Return what runs the levels, by engine and precision: PyTorch, and ONNX Runtime in fp32 and int8."""
    from elasticlm.backend.onnx_export import calibrate
    from elasticlm.backend.onnx_graph import build_graph
    from elasticlm.backend.onnx_runtime import OnnxBackend
    from elasticlm.model.structure import level_name

    runs: dict[tuple[str, str], Any] = {("torch", "fp32"): model.backend}
    for precision in ("fp32", "int8"):
        (folder / precision).mkdir()
        for level, (encoder, structure) in model.encoders.items():
            words = random_words(*CALIBRATED_ON, model.config.vocab_size)
            found = calibrate(model, level, [words]) if precision == "int8" else None
            graph = build_graph(encoder, structure, model.config.hidden_act, precision=precision, calibration=found)
            (folder / precision / f"{level_name(level)}.onnx").write_bytes(graph.SerializeToString())
        runs["onnx", precision] = OnnxBackend(folder / precision, model.encoders, precision=precision, threads=1)
    return runs


def run_of(backend: Any, shape: "Shape", level: "Level", words: int) -> "Run":
    """Return what runs a level on random words."""
    return partial(backend.hidden, random_words(shape.rows, shape.tokens, words), level)


def random_words(rows: int, tokens: int, vocabulary: int) -> "Tokenized":
    """Return random words of a vocabulary of this size, without padding."""
    import torch

    from elasticlm.model.tokenizing import Tokenized

    ids = torch.randint(5, vocabulary, (rows, tokens), generator=torch.Generator().manual_seed(0))
    return Tokenized({"input_ids": ids, "attention_mask": torch.ones_like(ids)}, [False] * rows)


def markdown(rows: list[dict[str, Any]]) -> str:
    """The rows as a table."""
    lines = ["| " + " | ".join(rows[0]) + " |", "| --- | " + "---: | " * (len(rows[0]) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(map(str, row.values())) + " |" for row in rows), ""])


if __name__ == "__main__":
    run_in_checkout("families")
