"""Tables 2 and 3 of the paper against the recipes, cell by cell."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from elasticlm.trainer.distil import DEFAULT_RELATION_HEADS
from elasticlm.trainer.loop_options import LoopOptions
from elasticlm.trainer.paper.scales import FOLDER, Scale
from elasticlm.trainer.recipe import Recipe

NONE = "-"


@dataclass(frozen=True)
class Setting:
    """A cell of the paper's table and the recipe's.

    Attributes:
        why: the reason of a difference; "" where there is none.
    """

    name: str
    column: str
    paper: str
    ours: str
    recipe: str
    why: str = ""

    @property
    def agrees(self) -> bool:
        return self.paper == self.ours


def settings() -> Iterator[Setting]:
    """The cells, row by row."""
    content = yaml.safe_load((FOLDER / "settings.yaml").read_text("utf-8"))
    columns = content["columns"]
    for name, key, *cells in content["rows"]:
        for (column, where), examples, paper in zip(columns.items(), content["examples"], cells, strict=True):
            recipe = Recipe.read(where["recipe"])
            options = options_of(recipe, where["stage"])
            ours = SPECIAL.get(key, _plain)(key, options, recipe, examples)
            why = (content["why"].get(name) or {}).get(column, "")
            yield Setting(name, column, _number(paper), ours, where["recipe"], why)


def options_of(recipe: Recipe, stage: str) -> dict[str, Any]:
    """The options of a recipe's first stage with this command, with its settings filled in."""
    filled = {f"{{{key}}}": value for key, value in recipe.settings.items()}
    options = next(each.options for each in recipe.stages if each.command == stage)
    return {key: filled.get(value, value) if isinstance(value, str) else value for key, value in options.items()}


def markdown() -> str:
    """The table for the documentation: the paper's value, and the recipe's where it differs, with the reason."""
    found = list(settings())
    columns = list(dict.fromkeys(cell.column for cell in found))
    lines = ["| setting | " + " | ".join(columns) + " |", "| --- |" + " ---: |" * len(columns)]
    for name in dict.fromkeys(cell.name for cell in found):
        cells = [cell.paper if cell.agrees else f"{cell.paper}; here {cell.ours}: {cell.why}"
                 for cell in found if cell.name == name]  # fmt: skip
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    recipes = dict.fromkeys(f"`{cell.recipe}`" for cell in found)
    return "\n".join([*lines, "", f"Recipes, in the order of the columns: {', '.join(recipes)}.", ""])


def _plain(key: str, options: dict[str, Any], recipe: Recipe, examples: int) -> str:
    default = getattr(LoopOptions(), key.replace("-", "_"), NONE)
    return _number(options.get(key, default))


def _of_grid(key: str, options: dict[str, Any], recipe: Recipe, examples: int) -> str:
    """GLUE's grid is that of the scale `paper`, which runs all of it; a recipe has one of its settings."""
    if recipe.name != "paper_glue":
        return _plain(key, options, recipe, examples)
    values = dict.fromkeys(_number(setting[key]) for setting in Scale.read("paper", ["data=."]).grid)
    return "{" + ",".join(values) + "}"


def _optimizer(key: str, options: dict[str, Any], recipe: Recipe, examples: int) -> str:
    return {"adamw": "AdamW"}[options.get(key, LoopOptions().optimizer)]


def _examples(key: str, options: dict[str, Any], recipe: Recipe, examples: int) -> str:
    millions = examples >= 1e6
    value = f"{examples / (1e6 if millions else 1e3):.1f}".removesuffix(".0")
    return (value if millions or recipe.name not in WHOLE_THOUSANDS else f"{examples / 1e3:.0f}") + "MK"[not millions]


def _epochs(key: str, options: dict[str, Any], recipe: Recipe, examples: int) -> str:
    return f"{float(options['max-steps']) * float(options['batch-size']) / examples:.0f}"


def _clip(key: str, options: dict[str, Any], recipe: Recipe, examples: int) -> str:
    return NONE if not float(options[key]) else _number(options[key])


def _relation_heads(key: str, options: dict[str, Any], recipe: Recipe, examples: int) -> str:
    return str(options.get(key, DEFAULT_RELATION_HEADS)) if "max-tokens" in options else NONE


def _length(key: str, options: dict[str, Any], recipe: Recipe, examples: int) -> str:
    """Two lengths: of two kinds of data, or of queries and passages."""
    if recipe.name == "paper_elasticlm":
        return f"{options['max-tokens']}/{options_of(Recipe.read('paper_rerank_msmarco'), 'distil')['max-tokens']}"
    if recipe.name == "paper_glue":
        pairs = options_of(Recipe.read("paper_glue_mnli"), "finetune")
        return f"{options['pair-tokens']}/{pairs['pair-tokens']}"
    if recipe.name == "paper_rerank_msmarco_docs":
        passages = options_of(Recipe.read("paper_rerank_msmarco"), "finetune")
        return f"{_pair_tokens(options)}/{_pair_tokens(passages)}"
    return f"{options['query-tokens']}/{options['passage-tokens']}"


def _pair_tokens(options: dict[str, Any]) -> int:
    """Tokens of a query and a passage together; each limit counts a text's two special tokens, and a pair has three."""
    return int(options["query-tokens"]) - 2 + int(options["passage-tokens"]) - 2 + 3


def _number(value: Any) -> str:
    """A number in one notation: 3e-4 for 0.0003, 0 for 0.0.

    >>> _number("3.0e-4"), _number(5.0), _number("-")
    ('3e-4', '5', '-')
    """
    try:
        number = float(value)
    except (TypeError, ValueError):
        return str(value)
    return f"{number:.0e}".replace("e-0", "e-") if 0 < number < 1e-3 else f"{number:g}"


WHOLE_THOUSANDS = ("paper_glue", "paper_rerank_msmarco_docs")
SPECIAL: dict[str, Callable[[str, dict[str, Any], Recipe, int], str]] = {
    "examples": _examples, "batch-size": _of_grid, "lr": _of_grid, "optimizer": _optimizer, "epochs": _epochs,
    "clip": _clip, "relation-heads": _relation_heads, "length": _length,
}  # fmt: skip
