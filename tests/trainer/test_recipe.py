"""recipe: stages in a row, done once, settings checked."""

import json

import pytest
import yaml

from elasticlm.errors import InputError
from elasticlm.retrieval.data import open_source
from elasticlm.structure import parse_levels
from trainer import finetune, prune, recipe
from trainer.recipe import RECIPES, Recipe


@pytest.fixture
def recipe_file(tiny_bert, beir, tmp_path):
    common = {"data": "{data}", "precision": "fp32"}
    loop = {"max-steps": "{max_steps}", "batch-size": 8, "dev-examples": 6, "freeze-embeddings": False}
    content = {
        "description": "tiny", "minutes": 1,
        "settings": {"teacher": str(tiny_bert), "data": f"beir:{beir}", "max_steps": 6, "levels": "100,50"},
        "stages": [
            {"prune": {"teacher": "{teacher}", **common, "levels": "{levels}", "output": "{output}/pruned"}},
            {"finetune": {"task": "align", "model": "{output}/pruned", **common, **loop, "output": "{output}/aligned"}},
            {"profile": {"model": "{output}/aligned", "rows": 1, "tokens": 16, "seconds": 0, "min-runs": 1}},
        ],
    }  # fmt: skip
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


def rewritten(file, change):
    content = yaml.safe_load(file.read_text())
    change(content)
    file.write_text(yaml.safe_dump(content))
    return str(file)


def test_a_recipe_runs_its_stages_and_a_second_run_does_none_again(recipe_file, tmp_path, monkeypatch, capsys):
    output = tmp_path / "out"
    recipe.main([str(recipe_file), "--set", "max_steps=4", "--output", str(output)])
    assert json.loads((output / "aligned/training.json").read_text())["steps"] == 4
    assert (output / "aligned/latency.csv").exists()
    stages = json.loads(capsys.readouterr().out.splitlines()[-1])["stages"]
    assert [stage["stage"] for stage in stages] == ["prune", "finetune", "profile"]
    monkeypatch.setattr(recipe, "load", lambda command: pytest.fail(f"{command} ran again"))
    recipe.main([str(recipe_file), "--set", "max_steps=4", "--output", str(output)])
    with pytest.raises(InputError, match=r"--max-steps 4.*choose another --output"):
        recipe.main([str(recipe_file), "--set", "max_steps=5", "--output", str(output)])


def test_an_interrupted_stage_goes_on_where_it_stopped(recipe_file, tmp_path, monkeypatch):
    output = tmp_path / "out"
    argv = [str(recipe_file), "--output", str(output)]
    ran = []

    def load(command, fail_at=None):
        def main(options):
            ran.append((command, options))
            if command == fail_at:
                raise KeyboardInterrupt
            return {"prune": prune.main, "finetune": finetune.main}.get(command, lambda options: None)(options)

        return main

    monkeypatch.setattr(recipe, "load", lambda command: load(command, fail_at="finetune"))
    with pytest.raises(KeyboardInterrupt):
        recipe.main(argv)
    monkeypatch.setattr(recipe, "load", load)
    recipe.main(argv)
    assert [command for command, _ in ran] == ["prune", "finetune", "finetune", "profile"]
    assert "--resume" in ran[2][1]
    assert (output / "aligned/model.safetensors").exists()


def test_unknown_settings_are_refused_with_the_near_match(recipe_file):
    found = Recipe.read(str(recipe_file))
    assert found.with_settings(["max_steps=9"]).settings["max_steps"] == "9"
    with pytest.raises(InputError, match="no setting 'max_step'; did you mean 'max_steps'"):
        found.with_settings(["max_step=9"])
    with pytest.raises(InputError, match="expected key=value"):
        found.with_settings(["max_steps"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content.update(stage=content.pop("stages")), "unknown field 'stage'; did you mean 'stages'"),
        (lambda content: content["stages"].append({"profil": {}}), "stage 4: .*'profil'; did you mean 'profile'"),
        (lambda content: content["stages"].append({"profile": {"model": "{modle}"}}), "no setting 'modle'"),
        (lambda content: content["stages"].append("profile"), "stage 4: expected one command"),
        (lambda content: content.pop("stages"), "list of stages"),
    ],
)  # fmt: skip
def test_what_is_wrong_in_a_recipe_is_said_with_its_place(recipe_file, change, message):
    with pytest.raises(InputError, match=message):
        Recipe.read(rewritten(recipe_file, change))


def test_an_unknown_recipe_is_refused_with_the_near_match():
    with pytest.raises(InputError, match="did you mean 'squad_align'"):
        Recipe.read("squad_aling")


@pytest.mark.parametrize("name", recipe.names())
def test_the_projects_recipes_are_whole(name):
    """Every stage parses, and its data is a spec."""
    found = Recipe.read(name)
    settings = {**found.settings, "output": "out"}
    assert parse_levels(str(settings["levels"]))
    content = yaml.safe_load((RECIPES / f"{name}.yaml").read_text())
    assert content["minutes"] > 0
    assert content["description"]
    for stage in found.stages:
        if stage.command in ("prune", "finetune"):
            args = {"prune": prune, "finetune": finetune}[stage.command].parse_args(stage.argv(settings))
            with pytest.raises(InputError, match="nowhere"):
                open_source(args.data.partition(":")[0] + ":nowhere") if ":" in args.data else open_source("nowhere")
    assert [stage.command for stage in found.stages][-1] == "profile"
