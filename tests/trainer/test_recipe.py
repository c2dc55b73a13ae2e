"""recipe: stages in a row, done once, settings checked."""

import json

import pytest
import yaml
from random_texts import make_texts
from sets import (
    PASSAGES,
    write_hub_beir,
    write_hub_glue,
    write_hub_mnli,
    write_hub_tevatron,
    write_jsonl,
    write_msmarco_docs,
)

from elasticlm.errors import InputError
from elasticlm.model.elastic_model import ElasticModel
from elasticlm.model.structure import parse_levels
from elasticlm.model.teacher import load_model
from elasticlm.retrieval.data_specs import open_source
from elasticlm.trainer import distil, evaluate, finetune, prune, recipe
from elasticlm.trainer.evaluation.base import Evaluation
from elasticlm.trainer.recipe import RECIPES, Recipe


@pytest.fixture
def recipe_file(tiny_bert, beir, tmp_path):
    common = {"data": "{data}"}
    loop = {
        "precision": "fp32",
        "max-steps": "{max_steps}",
        "batch-size": 8,
        "dev-examples": 6,
        "freeze-embeddings": False,
    }
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
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    return file


def rewritten(file, change):
    content = yaml.safe_load(file.read_text())
    change(content)
    file.write_text(yaml.safe_dump(content, sort_keys=False))
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


def test_recipes_share_a_model_that_lies_outside_their_outputs(recipe_file, tmp_path, monkeypatch, capsys):
    def change(content):
        content["settings"]["pruned"] = str(tmp_path / "shared")
        content["stages"][0]["prune"]["output"] = content["stages"][1]["finetune"]["model"] = "{pruned}"

    ran = []
    monkeypatch.setattr(recipe, "load", lambda command: lambda options: ran.append(command))
    argv = [rewritten(recipe_file, change), "--output", str(tmp_path / "out")]
    (tmp_path / "shared").mkdir()
    recipe.main(argv)
    assert ran == ["finetune", "profile"]
    assert "taken as it is" in capsys.readouterr().err
    (tmp_path / "shared").rmdir()
    recipe.main([*argv[:-1], str(tmp_path / "other")])
    assert ran[2:] == ["prune", "finetune", "profile"]


def test_a_setting_without_a_value_must_be_given(recipe_file, tmp_path):
    name = rewritten(recipe_file, lambda content: content["settings"].update(data=None))
    with pytest.raises(InputError, match=r"recipe tiny needs a value for data: --set data=\.\.\."):
        recipe.main([name, "--output", str(tmp_path / "out")])
    assert Recipe.read(name).with_settings(["data=pydoc"]).commands(tmp_path)[0]["data"] == "pydoc"


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


def test_a_setting_that_is_a_list_and_what_is_excluded_reach_every_stage_that_reads(recipe_file, tmp_path):
    def change(content):
        data = ["beir:{folder}/a", "text:b"]
        content["settings"] = {"folder": "here", **content["settings"], "data": data}
        content["exclude"] = ["beir:{folder}/c"]

    settings, commands = Recipe.read(rewritten(recipe_file, change)).commands(tmp_path)
    assert settings["data"] == ["beir:here/a", "text:b"]
    for name, options in commands[:2]:
        assert options[options.index("--data") :][:3] == ["--data", "beir:here/a", "text:b"], name
        assert options[-2:] == ["--exclude", "beir:here/c"]
    assert "--exclude" not in commands[2][1]


def test_a_recipe_based_on_another_changes_settings_only(recipe_file, tmp_path):
    other = tmp_path / "other.yaml"
    other.write_text(yaml.safe_dump({"base": str(recipe_file), "settings": {"max_steps": 9}}))
    found, base = Recipe.read(str(other)), Recipe.read(str(recipe_file))
    assert (found.name, found.stages) == ("other", base.stages)
    assert found.settings == {**base.settings, "max_steps": 9}
    other.write_text(yaml.safe_dump({"base": str(recipe_file), "settings": {"max_step": 9}}))
    with pytest.raises(InputError, match="did you mean 'max_steps'"):
        Recipe.read(str(other))
    other.write_text(yaml.safe_dump({"base": str(recipe_file), "stages": []}))
    with pytest.raises(InputError, match="settings only"):
        Recipe.read(str(other))


def test_a_recipe_based_on_another_may_add_stages_behind_those_of_the_base(recipe_file, tmp_path):
    other = tmp_path / "other.yaml"

    def read(then):
        other.write_text(yaml.safe_dump({"base": str(recipe_file), "then": then}))
        return Recipe.read(str(other))

    base, added = Recipe.read(str(recipe_file)), {"profile": {"model": "{output}/aligned", "rows": 8}}
    found = read([added])
    assert found.stages[:-1] == base.stages
    assert (found.stages[-1].command, found.stages[-1].options) == ("profile", added["profile"])
    with pytest.raises(InputError, match="stage 4: no setting 'modle'"):
        read([{"profile": {"model": "{modle}"}}])
    with pytest.raises(InputError, match="then: expected a list of stages"):
        read(added)
    with pytest.raises(InputError, match="there is no base here"):
        Recipe.read(rewritten(recipe_file, lambda content: content.update(then=[added])))


@pytest.mark.parametrize("name", recipe.names())
def test_the_projects_recipes_are_whole(name, tmp_path):
    """Every stage parses, and its data is a spec."""
    content = yaml.safe_load((RECIPES / f"{name}.yaml").read_text())
    assert content["minutes"] > 0
    assert content["description"]
    required = {"data": "beir:nowhere", "folder": "nowhere"}
    given = [f"{key}={required[key]}" for key, value in Recipe.read(name).settings.items() if value is None]
    settings, commands = Recipe.read(name).with_settings(given).commands(tmp_path)
    assert parse_levels(str(settings.get("levels", 50)))
    for command, options in commands:
        if command in ("prune", "distil", "finetune"):
            parse = {"prune": prune.parse_args, "distil": distil.parse_args,
                     "finetune": lambda options: finetune.parse_args(options)[0]}[command]  # fmt: skip
            args = parse(options)
            for spec in args.data + args.exclude:
                if spec.startswith("hf:"):  # the hub is asked later
                    continue
                with pytest.raises(InputError, match="nowhere"):
                    open_source(spec.partition(":")[0] + ":nowhere" if ":" in spec else "nowhere")
    assert commands[-1][0] in ("profile", "evaluate")


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in recipe.names() if name.startswith("paper_")])
def test_the_papers_recipes_run_on_stand_ins_of_the_same_form(name, tiny_bert, tmp_path, monkeypatch, capsys):
    """Two steps each: the teacher in the hub's form, Wikipedia as articles, pairs of Tevatron, BEIR and GLUE."""
    wikipedia = tmp_path / "wikipedia"
    wikipedia.mkdir()
    articles = make_texts(60, seed=3, shortest=6, longest=20)
    write_jsonl(wikipedia / "train.jsonl", ({"text": "\n\n".join(articles[i : i + 3])} for i in range(0, 60, 3)))
    ids = [pid for pid, _, _ in PASSAGES]
    asked = [(" ".join(text.split()[:4]), pid, [i for i in ids if i != pid]) for pid, _, text in PASSAGES]
    tevatron = f"hf:{write_hub_tevatron(tmp_path / 'tevatron', asked)}"
    beir = f"hf:{write_hub_beir(tmp_path / 'beir')}"
    small = {"teacher": tiny_bert, "levels": "50,10", "max_steps": 2, "batch_size": 4, "chunk_size": 4}
    small |= {"data": f"hf:{wikipedia}", "wikipedia": f"hf:{wikipedia}", "distil_steps": 2, "distil_batch_size": 4}
    if name.startswith(("paper_retrieve", "paper_rerank")):
        small |= {"data": tevatron, "test": beir, "test_split": "validation", "negatives": 2, "query_tokens": 8}
        small |= {"passage_tokens": 16, "distil_chunk_size": 4, "depth": 5, "structure": tiny_bert}
    if name.endswith("triviaqa") or name == "paper_retrieve_nq":
        corpus = tmp_path / "corpus"
        corpus.mkdir()
        write_jsonl(
            corpus / "train.jsonl", (dict(zip(("docid", "title", "text"), row, strict=True)) for row in PASSAGES)
        )
        small |= {"test": tevatron, "test_split": "dev", "corpus": f"hf:{corpus}"}
    if name == "paper_rerank_msmarco_docs":
        folder = write_msmarco_docs(tmp_path / "docs")
        small |= {"data": f"msmarco-docs:{folder}", "test": f"msmarco-docs:{folder}", "test_split": "dev"}
        small |= {f"{kind}_run": folder / f"msmarco-doc{split}-top100.gz"
                  for kind, split in (("train", "train"), ("test", "dev"))}  # fmt: skip
    if name.startswith("paper_glue"):
        prune.main(["--teacher", str(tiny_bert), "--data", f"hf:{wikipedia}", "--score-loss", "mlm",
                    "--levels", "50,10", "--output", str(tmp_path / "distilled")])  # fmt: skip
        data = (write_hub_mnli if name.endswith("mnli") else write_hub_glue)(tmp_path / "glue")
        small |= {"data": f"hf:{data}", "distilled": tmp_path / "distilled", "pair_tokens": 16}
    known = Recipe.read(name).settings
    assignments = [f"{key}={value}" for key, value in small.items() if key in known]
    load = recipe.load  # all but the timing
    monkeypatch.setattr(recipe, "load", lambda name: load(name) if name != "profile" else lambda options: None)
    recipe.main([name, "--set", *assignments, "--output", str(tmp_path / "out")])
    stages = [stage["stage"] for stage in json.loads(capsys.readouterr().out.splitlines()[-1])["stages"]]
    assert stages == [stage.command for stage in Recipe.read(name).stages]
    for quality in (tmp_path / "out").glob("*/quality.json"):
        found = json.loads(quality.read_text())
        assert all({"teacher", "50", "10"} <= set(measured["metrics"]) for measured in found.values())
        assert len(found) == (2 if name.endswith("mnli") else 1)


def test_mnli_is_measured_on_both_of_its_dev_splits(tiny_bert, tiny_artifact, tmp_path):
    """The evaluate stages of paper_glue_mnli on a local hub folder, with a classifier that nothing has trained."""
    data, output = f"hf:{write_hub_mnli(tmp_path / 'mnli')}", tmp_path / "out"
    labels = ("entailment", "neutral", "contradiction")
    models = {"classifier": ElasticModel.from_pretrained(tiny_artifact), "teacher": load_model(str(tiny_bert))}
    for folder, source in models.items():
        source.with_head("classify", labels).save_pretrained(output / folder)
    _, commands = Recipe.read("paper_glue_mnli").with_settings([f"data={data}"]).commands(output)
    for command, options in commands:
        if command == "evaluate":
            evaluate.main(options)
    found = [Evaluation.read(output / name) for name in ("dev.json", "dev_mismatched.json")]
    assert [evaluation.split for evaluation in found] == ["validation_matched", "validation_mismatched"]
    assert found[0].split_sha256 != found[1].split_sha256
    assert len(json.loads((output / "classifier/quality.json").read_text())) == 2
    for evaluation in found:
        assert list(evaluation.metrics) == ["teacher", "100", "50", "10", "majority"]
        assert evaluation.targets is not None
        for row, predictions in evaluation.predictions.items():
            assert evaluation.metrics[row]["accuracy"] == pytest.approx((predictions == evaluation.targets).mean())
