"""The paper's recipes, and the scale of its tables, have the settings of its Tables 2 and 3, cell by cell."""

from pathlib import Path

import pytest

from elasticlm.trainer.paper.scales import Scale
from elasticlm.trainer.paper.settings_table import markdown, settings
from elasticlm.trainer.recipe import Recipe
from elasticlm.trainer.recipe import names as recipe_names

DISTILLATION = {"batch-size": 1024, "lr": 3e-4, "warmup": 0.01, "weight-decay": 0.01, "clip": 5}
GLUE = {"lr": 2e-5, "warmup": 0.1, "weight-decay": 0.01, "clip": 5, "batch-size": 32}  # of a grid
RETRIEVER = {"batch-size": 128, "lr": 1e-5, "warmup": 0.1, "weight-decay": 0, "clip": 0, "query-tokens": 32,
             "passage-tokens": 156, "negatives": 1}  # fmt: skip
MS_MARCO = RETRIEVER | {"batch-size": 8, "lr": 5e-6, "query-tokens": 16, "passage-tokens": 128, "negatives": 7}
RERANKER = {"batch-size": 4, "lr": 1e-5, "warmup": 0.1, "weight-decay": 0.01, "clip": 0, "negatives": 7}
PAIR = {"paper_rerank_msmarco_docs": 512, "paper_rerank_msmarco": 256}  # tokens of a query and its passage together
TABLE_3 = {
    "paper_elasticlm": ("distil", DISTILLATION, 5, 35e6),
    "paper_glue": ("finetune", GLUE, 10, 67_349),
    "paper_glue_mnli": ("finetune", GLUE, 10, 392_702),
    "paper_retrieve_nq": ("finetune", RETRIEVER, 40, 58_880),
    "paper_retrieve_triviaqa": ("finetune", RETRIEVER, 40, 60_413),
    "paper_retrieve_msmarco": ("finetune", MS_MARCO, 3, 502_939),
    "paper_rerank_nq": ("finetune", RERANKER, 2, 58_880),
    "paper_rerank_triviaqa": ("finetune", RERANKER, 2, 60_413),
    "paper_rerank_msmarco": ("finetune", RERANKER, 2, 502_939),
    "paper_rerank_msmarco_docs": ("finetune", RERANKER, 2, 367_013),
}
"""Recipe -> the stage, its settings, epochs, and training examples (Table 2; of MS MARCO those that are published)."""


def options_of(recipe, command):
    """The options of each stage with this command, with the recipe's settings filled in."""
    settings = {f"{{{key}}}": value for key, value in recipe.settings.items()}
    return [{name: settings.get(value, value) for name, value in stage.options.items()}
            for stage in recipe.stages if stage.command == command]  # fmt: skip


@pytest.mark.parametrize("name", TABLE_3)
def test_settings_are_those_of_the_paper(name):
    command, expected, epochs, examples = TABLE_3[name]
    recipe = Recipe.read(name)
    stages = options_of(recipe, command)
    assert stages
    for options in stages:
        found = {key: float(options[key]) for key in expected}
        assert found == pytest.approx(expected)
        steps = epochs * examples / expected["batch-size"]
        assert float(options["max-steps"]) == pytest.approx(steps, rel=0.01)
    for options in options_of(recipe, "distil"):
        assert {key: float(options[key]) for key in DISTILLATION} == pytest.approx(DISTILLATION)
        assert options["levels-per-step"] == "all"
        assert options["max-tokens"] == (512 if name.startswith("paper_rerank") else 128)


@pytest.mark.parametrize("name", recipe_names())
def test_only_the_papers_recipes_drop_values_in_training(name):
    """The rates are those of the teacher's configuration, BERT's 0.1; results of the other recipes are without."""
    recipe = Recipe.read(name)
    stages = options_of(recipe, "distil") + options_of(recipe, "finetune")
    expected = "teacher" if name.startswith("paper_") else None
    assert {options.get("dropout") for options in stages} <= {expected}
    assert stages or not name.startswith("paper_")


def test_both_dev_splits_of_mnli_are_measured():
    stages = options_of(Recipe.read("paper_glue_mnli"), "evaluate")
    found = {(options["split"], options["output"]) for options in stages}
    assert found == {("validation_matched", "{output}/dev.json"),
                     ("validation_mismatched", "{output}/dev_mismatched.json")}  # fmt: skip


@pytest.mark.parametrize("name", [name for name in TABLE_3 if not name.startswith("paper_glue")])
def test_structures_come_from_masked_words_at_the_papers_levels(name):
    first = options_of(Recipe.read(name), "prune")[0]
    assert (first["score-loss"], first["levels"]) == ("mlm", "50,40,30,20,15,10,5")
    assert first.get("score-model", first["teacher"]) == "google-bert/bert-base-uncased"


@pytest.mark.parametrize("name", PAIR)
def test_pairs_have_the_papers_length(name):
    for options in options_of(Recipe.read(name), "finetune"):
        special = 3  # [CLS] and two [SEP]; each of the two limits counts a single text's two
        assert options["query-tokens"] - 2 + options["passage-tokens"] - 2 + special == PAIR[name]


@pytest.mark.parametrize(("name", "command"), [("paper_rerank_msmarco_docs", "finetune"),
                                               ("paper_rerank_msmarco_docs", "evaluate")])  # fmt: skip
def test_documents_are_reranked_behind_a_run(name, command):
    for options in options_of(Recipe.read(name), command):
        assert options["run"].endswith("top100.gz")


@pytest.mark.parametrize("cell", list(settings()), ids=lambda cell: f"{cell.name}, {cell.column}")
def test_a_cell_of_the_papers_tables_agrees_or_says_why(cell):
    assert cell.agrees or cell.why


def test_the_documentation_has_the_settings_as_they_are():
    page = (Path(__file__).parents[2] / "docs/paper.md").read_text("utf-8")
    assert markdown() in page, "replace the table in docs/paper.md by what settings_table.markdown() gives"


SETS = {
    ("retrieval", "NQ"): "paper_retrieve_nq", ("retrieval", "Trivia"): "paper_retrieve_triviaqa",
    ("retrieval", "MC Psg"): "paper_retrieve_msmarco", ("reranking", "MC Doc"): "paper_rerank_msmarco_docs",
    ("reranking", "MC Psg"): "paper_rerank_msmarco",
}  # fmt: skip


@pytest.mark.parametrize(("kind", "column"), SETS)
def test_the_scale_of_the_tables_has_the_recipes_settings(kind, column):
    """What a table trains at the paper's scale is what the recipe trains."""
    scale, recipe = Scale.read("paper", ["data=."]), Recipe.read(SETS[kind, column])
    where, task = getattr(scale, kind)[column], {"retrieval": "retrieve", "reranking": "rerank"}[kind]
    trained = {**getattr(scale, task), **where["train"]}
    for options in options_of(recipe, "finetune"):
        for key in ("batch-size", "lr", "max-steps", "warmup", "weight-decay", "clip", "dropout", "query-tokens",
                    "passage-tokens", "negatives"):  # fmt: skip
            assert str(trained[key]) == str(options[key]) or float(trained[key]) == float(options[key]), key
    distilled = {**scale.distil, **(scale.prop_distil if kind == "reranking" else {})}
    for key, value in options_of(recipe, "distil")[0].items():
        if key not in ("model", "teacher", "data", "output", "seed", "chunk-size"):
            assert str(distilled[key]) == str(value) or float(distilled[key]) == float(value), key


def test_the_tables_of_glue_have_the_recipes_settings():
    scale, options = Scale.read("paper", ["data=."]), options_of(Recipe.read("paper_glue"), "finetune")[0]
    assert {"batch-size": int(options["batch-size"]), "lr": float(options["lr"])} in [dict(each) for each in scale.grid]
    for key in ("warmup", "weight-decay", "clip", "dropout", "levels-per-step"):
        assert str(scale.classify[key]) == str(options[key])
    assert {where["pair-tokens"] for name, where in scale.glue.items() if name != "SST-2"} == {128}
    assert len(scale.grid) == 6
