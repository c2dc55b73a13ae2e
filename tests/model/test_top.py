"""Level 100 as the teacher itself: its own tensors, bit for bit, before and after training, in files and graphs."""

import json
import shutil

import pytest
import safetensors.torch
import torch
from teachers import logits, sequence_classifier
from transformers import AutoTokenizer

from elasticlm.backend import onnx_export
from elasticlm.errors import InputError
from elasticlm.model.elastic_model import ElasticModel
from elasticlm.model.structure import ElasticStructure
from elasticlm.model.teacher import load_encoder, load_model, passage_encoder
from elasticlm.trainer import evaluate, finetune, index, prune
from elasticlm.trainer import export as export_command

TEXTS = ["how does ice form", "the river", "why is the mountain cold and the cave warm in a storm", "glacier"]
SHORT = ["--max-steps", "4", "--batch-size", "8", "--lr", "1e-3", "--precision", "fp32", "--threads", "1"]
TASKS = {"embed": 0, "score": 1, "classify": 3}


@pytest.fixture(scope="module")
def teachers(tiny_bert, tmp_path_factory):
    """Folders of a teacher for each task."""
    folder = tmp_path_factory.mktemp("teachers")
    return {task: sequence_classifier(tiny_bert, folder / task, labels) if labels else tiny_bert
            for task, labels in TASKS.items()}  # fmt: skip


@pytest.fixture(scope="module")
def sentences(tmp_path_factory, tiny_beir):
    """Pairs of sentences without labels."""
    folder = tmp_path_factory.mktemp("sentences")
    texts = [json.loads(line)["text"] for line in (tiny_beir / "queries.jsonl").read_text().splitlines()]
    lines = [json.dumps({"sentence1": first, "sentence2": second})
             for first, second in zip(texts, texts[::-1], strict=True)]  # fmt: skip
    (folder / "train.jsonl").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def artifacts(teachers, tiny_beir, sentences, tmp_path_factory):
    """For each task what prune makes of the teacher by default, and what training then makes of that."""
    folder = tmp_path_factory.mktemp("artifacts")
    found = {}
    for task, teacher in teachers.items():
        data = f"glue:{sentences}" if task == "classify" else f"beir:{tiny_beir}"
        pruned, trained = folder / f"{task}-pruned", folder / f"{task}-trained"
        prune.main(["--teacher", str(teacher), "--data", data, "--levels", "100,50,10", "--max-examples", "64",
                    "--output", str(pruned)])  # fmt: skip
        kind = {"embed": "align", "score": "rerank", "classify": "classify"}[task]
        finetune.main(["--task", kind, "--model", str(pruned), "--data", data, "--output", str(trained), *SHORT,
                       "--no-freeze-embeddings"])  # fmt: skip
        found[task] = pruned, trained
    return found


def answers(model, level):
    """Answers of a level to TEXTS, alone or as pairs."""
    inputs = model.tokenize(TEXTS) if model.config.task == "embed" else model.tokenize_pairs(TEXTS, TEXTS[::-1])
    return model.encode(inputs, level)


def hugging_faces(task, teacher):
    """What Hugging Face's class answers to them."""
    if task != "embed":
        return logits(teacher, TEXTS, TEXTS[::-1]).squeeze(-1)
    inputs = AutoTokenizer.from_pretrained(teacher)(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = load_encoder(teacher)(**inputs).last_hidden_state
    mask = inputs["attention_mask"][..., None]
    return torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("state", ["pruned", "trained"])
def test_level_100_is_the_teacher_bit_for_bit_before_and_after_training(artifacts, teachers, task, state):
    model, teacher = ElasticModel.from_pretrained(artifacts[task][state == "trained"]), load_model(teachers[task])
    assert torch.equal(answers(model, 100), answers(teacher, 100))
    assert {name: bool((tensor == teacher.state_dict()[name]).all()) for name, tensor in model.top.state_dict().items()
            if not torch.equal(tensor, teacher.state_dict()[name])} == {}  # fmt: skip
    max_diff = (answers(model, 100) - hugging_faces(task, teachers[task])).abs().max()
    assert max_diff < 1e-5, max_diff


@pytest.mark.parametrize("task", TASKS)
def test_the_levels_below_are_trained_and_are_nested(artifacts, task):
    before, after = map(ElasticModel.from_pretrained, artifacts[task])
    assert (before.levels, before.trained_levels) == ((100, 50, 10), (50, 10))
    for level in (50, 10):
        assert not torch.equal(answers(before, level), answers(after, level)), level
    assert after.encoders[50][0] is after.encoders[10][0] is after.encoder
    assert sum(map(sum, (after.structures[50].heads, after.structures[50].neurons))) < 3 * (4 + 32)
    log = (artifacts[task][1] / "loss.csv").read_text()
    assert ",50," in log
    assert ",100," not in log


@pytest.mark.parametrize("task", TASKS)
def test_what_is_equal_is_held_and_stored_once(artifacts, task):
    pruned, trained = artifacts[task]
    model = ElasticModel.from_pretrained(pruned)
    assert model.top.encoder.embeddings is model.encoder.embeddings
    assert task == "embed" or model.top.head is model.head
    assert not [name for name in safetensors.torch.load_file(pruned / "teacher.safetensors")
                if name.startswith(("encoder.embeddings", "head"))]  # fmt: skip
    words = "encoder.embeddings.word.weight"
    assert words in safetensors.torch.load_file(trained / "teacher.safetensors"), "they were trained"
    after = ElasticModel.from_pretrained(trained)
    assert not torch.equal(after.top.encoder.embeddings.word.weight, after.encoder.embeddings.word.weight)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_graphs_of_level_100_are_the_teachers_in_fp32(artifacts, tmp_path, monkeypatch, task, precision):
    monkeypatch.setattr(onnx_export, "LEAST_COSINE", 0.8)  # of a tiny random model
    folder = shutil.copytree(artifacts[task][1], tmp_path / "copy")
    onnx_export.export(ElasticModel.from_pretrained(folder), folder, precision, TEXTS)
    model = ElasticModel.from_pretrained(folder, backend="onnx", precision=precision)
    whole = ElasticModel.from_pretrained(folder)
    max_diff = (answers(model, 100) - answers(whole, 100)).abs().max()
    assert max_diff < 1e-4, max_diff
    for level in (50, 10):
        max_diff = (answers(model, level) - answers(whole, level)).abs().max()
        assert (max_diff < 1e-4) == (precision == "fp32"), (level, max_diff)


def test_the_fingerprint_of_its_passages_is_the_teachers(artifacts, teachers, tiny_beir, tmp_path):
    teacher = load_model(teachers["embed"])
    for folder in artifacts["embed"]:
        model = ElasticModel.from_pretrained(folder)
        assert model.config.passages.encoder == "teacher"
        assert passage_encoder(model).fingerprint() == model.config.passages.fingerprint == teacher.fingerprint()
        assert torch.equal(passage_encoder(model).embed(TEXTS, kind="passage"), teacher.embed(TEXTS, kind="passage"))
    index.main(["--model", str(artifacts["embed"][1]), "--data", f"beir:{tiny_beir}", "--output", str(tmp_path / "i")])
    assert json.loads((tmp_path / "i/index.json").read_text())["fingerprint"] == teacher.fingerprint()


def test_it_keeps_all_of_the_teacher_without_naming_one(artifacts, tiny_beir, tmp_path, capsys):
    config = json.loads((artifacts["embed"][1] / "config.json").read_text())
    config["teacher"] = None  # it is not needed: level 100 is the teacher
    (artifacts["embed"][1] / "config.json").write_text(json.dumps(config))
    evaluate.main(["--model", str(artifacts["embed"][1]), "--data", f"beir:{tiny_beir}", "--output",
                   str(tmp_path / "test.json")])  # fmt: skip
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["metrics"]["100"] == result["metrics"]["teacher"]
    retention = result["retention"]["100"]
    assert [1.0, 1.0, 1.0] in retention.values()
    assert all(value in ([1.0, 1.0, 1.0], None) for value in retention.values()), retention


def test_one_level_is_exported_with_the_weights_that_run_it(artifacts, teachers, tmp_path):
    model = ElasticModel.from_pretrained(artifacts["embed"][1])
    for level in (100, 50):
        export_command.main(["--model", str(artifacts["embed"][1]), "--level", str(level), "--output",
                             str(tmp_path / str(level))])  # fmt: skip
        alone = ElasticModel.from_pretrained(tmp_path / str(level))
        assert (alone.levels, alone.top) == ((level,), None)
        assert torch.equal(alone.embed(TEXTS), model.embed(TEXTS, level=level))
    assert ElasticModel.from_pretrained(tmp_path / "100").fingerprint() == load_model(teachers["embed"]).fingerprint()
    two = model.cut(ElasticStructure({k: model.structures[k] for k in (100, 10)}, top=True))
    assert torch.equal(answers(two, 100), answers(model, 100))
    assert torch.equal(answers(two, 10), answers(model, 10))


def test_which_top_a_model_gets(tiny_bert, tiny_beir, tmp_path):
    command = ["--teacher", str(tiny_bert), "--data", f"beir:{tiny_beir}", "--max-examples", "64"]

    def top_of(name, *options):
        prune.main([*command, "--output", str(tmp_path / name), *options])
        return ElasticModel.from_pretrained(tmp_path / name).top

    assert top_of("default", "--levels", "100,50") is not None
    assert top_of("shared", "--levels", "100,50", "--top", "shared") is None
    assert top_of("alone", "--levels", "100") is None
    assert top_of("below", "--levels", "50,10") is None
    for levels in ("100", "50,10"):
        with pytest.raises(InputError, match=r"--top teacher: .* has no level 100 with smaller levels"):
            top_of("x", "--levels", levels, "--top", "teacher")


@pytest.mark.parametrize(("task", "kind"), [("embed", "retrieve"), ("embed", "rerank"), ("embed", "classify"),
                                            ("score", "classify")])  # fmt: skip
def test_tasks_that_the_teacher_was_not_fine_tuned_for_are_refused(artifacts, tiny_beir, tmp_path, task, kind):
    rows = [{"sentence1": "ice", "sentence2": "snow", "label": i % 2} for i in range(40)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = f"glue:{tmp_path}" if kind == "classify" else f"beir:{tiny_beir}"
    with pytest.raises(InputError, match=r"fine-tune the teacher first .* or prune with --top shared"):
        finetune.main(["--task", kind, "--model", str(artifacts[task][0]), "--data", data,
                       "--output", str(tmp_path / "x")])  # fmt: skip


def test_a_resumed_run_is_the_same_as_one_that_was_not_interrupted(artifacts, tiny_beir, tmp_path, monkeypatch):
    from elasticlm.trainer import loop

    command = ["--task", "align", "--model", str(artifacts["embed"][0]), "--data", f"beir:{tiny_beir}", *SHORT,
               "--checkpoint-every", "2"]  # fmt: skip
    finetune.main([*command, "--output", str(tmp_path / "whole")])
    steps = []

    def stop_in_the_third(*arguments, **options):
        steps.append(1)
        if len(steps) == 3:
            raise KeyboardInterrupt
        return original(*arguments, **options)

    original = loop.accumulate_gradients
    monkeypatch.setattr(loop, "accumulate_gradients", stop_in_the_third)
    with pytest.raises(KeyboardInterrupt):
        finetune.main([*command, "--output", str(tmp_path / "cut")])
    finetune.main([*command, "--output", str(tmp_path / "cut"), "--resume"])
    for name in ("model.safetensors", "teacher.safetensors"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    checkpoint = tmp_path / "cut.checkpoints"
    assert not checkpoint.exists()
