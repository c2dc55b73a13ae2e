"""``python -m trainer export``: one level alone, as a stand-alone artifact."""

from pathlib import Path

from elasticlm import command
from elasticlm.artifact import LATENCY_FILE, WEIGHTS_FILE
from elasticlm.files import new_folder, refuse_existing, sha256_file
from elasticlm.latency import LatencyTable, read_tables
from elasticlm.model import ElasticModel
from elasticlm.structure import ElasticStructure, Level, level_name, parse_level
from elasticlm.teacher import load_model


def main(argv: list[str] | None = None) -> None:
    parser = command.parser("python -m trainer export", __doc__.partition(": ")[2])
    parser.add_argument("--model", required=True, metavar="DIR", help="elastic model")
    parser.add_argument("--level", required=True, metavar="K", help="the level to take, such as 30")
    parser.add_argument("--output", required=True, metavar="DIR", help="artifact folder to write")
    parser.add_argument("--overwrite", action="store_true", help="replace the output")
    args = parser.parse_args(argv)
    level = parse_level(args.level)
    refuse_existing(args.output, overwrite=args.overwrite)
    model = load_model(args.model)
    alone = export(model, args.model, level)
    file = Path(args.model) / LATENCY_FILE
    with new_folder(args.output, overwrite=args.overwrite) as folder:
        alone.save_pretrained(folder)
        for table in read_tables(file) if file.exists() else []:
            cells = [cell for cell in table.cells if cell.level == level]
            if cells:
                LatencyTable(cells, table.setup, table.notes).write(folder / LATENCY_FILE)
    parameters = sum(p.numel() for p in alone.parameters())
    command.print_table([{"level": level_name(level), "parameters": parameters, "output": args.output}])
    command.print_result({"output": args.output, "level": level, "parameters": parameters})


def export(model: ElasticModel, name: str, level: Level) -> ElasticModel:
    """Cut one level out of a model. Its passages stay with what encoded them.

    Where that is the model's own largest level, the model (under ``name``) becomes the teacher of the smaller one.
    """
    alone = model.cut(ElasticStructure({level: model.structures[level]}))
    if (model.config.passages or {}).get("encoder") == "largest" and level != model.structures.largest:
        alone.config.teacher = {"name": name, "sha256": sha256_file(Path(name) / WEIGHTS_FILE)}
        alone.config.passages = {**model.config.passages, "encoder": "teacher"}  # type: ignore[dict-item]
    return alone


if __name__ == "__main__":
    command.run(main)
