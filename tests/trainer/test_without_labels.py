"""prune and finetune of rerankers and classifiers that others trained: with their head, from texts without labels."""

import json

import numpy as np
import pytest
import torch
from random_texts import make_texts
from teachers import NAMES, logits, sequence_classifier
from torch.nn import functional as F

from elasticlm.errors import InputError
from elasticlm.model.configuration import MaxTokens
from elasticlm.model.elastic_model import ElasticModel
from elasticlm.trainer import evaluate, finetune, prune
from elasticlm.trainer.objectives.fine_tuning import match_losses

SHORT = ["--max-steps", "30", "--batch-size", "8", "--lr", "1e-3", "--precision", "fp32", "--threads", "1"]
QUERIES, PASSAGES = make_texts(160, seed=1, shortest=3, longest=5), make_texts(80, seed=2, shortest=6, longest=12)


@pytest.fixture(scope="module")
def unlabelled(tmp_path_factory):
    """Folder of sets without labels: `beir` (queries, passages), `pairs`, `lines.txt`."""
    folder = tmp_path_factory.mktemp("unlabelled")
    (folder / "beir").mkdir()
    for name, texts in (("queries", QUERIES), ("corpus", PASSAGES)):
        lines = [json.dumps({"_id": f"{name[0]}{i}", "text": text}) for i, text in enumerate(texts)]
        (folder / f"beir/{name}.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "pairs").mkdir()
    pairs = zip(QUERIES, QUERIES[::-1], strict=True)
    lines = [json.dumps({"sentence1": first, "sentence2": second}) for first, second in pairs]
    (folder / "pairs/train.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "lines.txt").write_text("\n".join(make_texts(200, seed=3, shortest=5, longest=9)) + "\n")
    return folder


@pytest.fixture(scope="module")
def teachers(tiny_bert, tmp_path_factory):
    """A random reranker and a classifier of Hugging Face's class, by their number of labels."""
    folder = tmp_path_factory.mktemp("theirs")
    return {labels: sequence_classifier(tiny_bert, folder / str(labels), labels) for labels in (1, 3)}


def pruned(teacher, data, output, *more):
    prune.main(["--teacher", str(teacher), "--data", data, "--levels", "100,50,10", "--max-examples", "64",
                "--output", str(output), *more])  # fmt: skip
    return output


@pytest.mark.parametrize(
    ("labels", "data"), [(1, "beir:{}/beir"), (3, "glue:{}/pairs"), (3, "text:{}/lines.txt"), (1, "text:{}/lines.txt")]
)
def test_a_classifier_of_hugging_face_is_pruned_and_distilled_without_labels(
    teachers, unlabelled, tmp_path, capsys, labels, data
):
    """Level 100 gives its logits after pruning and after training, and the loss falls at every level below."""
    teacher, data = teachers[labels], data.format(unlabelled)
    whole = ElasticModel.from_pretrained(pruned(teacher, data, tmp_path / "pruned"))
    inputs = whole.tokenize_pairs(QUERIES[:8], PASSAGES[:8])
    expected = logits(teacher, QUERIES[:8], PASSAGES[:8])
    max_diff = (whole.encode(inputs, 100).view(8, -1) - expected).abs().max()
    assert max_diff < 1e-5, max_diff
    capsys.readouterr()
    finetune.main(["--task", "rerank" if labels == 1 else "classify", "--model", str(tmp_path / "pruned"),
                   "--teacher", str(teacher), "--data", data, "--output", str(tmp_path / "out"), *SHORT])  # fmt: skip
    told = capsys.readouterr()
    assert "without labels" in told.err
    report = json.loads(told.out.splitlines()[-1])
    before, after = report["dev_loss_before"], report["dev_loss_after"]
    assert list(before) == ["50", "10"], "level 100 is the teacher and is not trained"
    for level in before:
        assert after[level] < 0.9 * before[level], (level, before, after)
    model = ElasticModel.from_pretrained(tmp_path / "out")
    max_diff = (model.encode(inputs, 100).view(8, -1) - expected).abs().max()
    assert max_diff < 1e-5, max_diff
    assert model.config.head.kind == "pooler"
    assert model.config.labels == (() if labels == 1 else tuple(NAMES[3]))


def test_the_targets_are_the_teachers_scores_alone(teachers, unlabelled, tmp_path):
    """The gradient with labels differs; without them the loss over a list is KL(teacher || student)."""
    scores, teacher = torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([[0.0, 3.0, 1.0]])
    expected = F.kl_div(scores.log_softmax(-1), teacher.softmax(-1), reduction="sum")
    assert match_losses(scores, None, teacher).item() == pytest.approx(expected.item(), abs=1e-6)
    assert match_losses(scores, None, scores).item() == pytest.approx(0, abs=1e-6)


def test_labels_are_used_where_there_are_any_unless_they_are_switched_off(
    teachers, tiny_beir, unlabelled, tmp_path, capsys
):
    model = pruned(teachers[1], f"beir:{tiny_beir}", tmp_path / "pruned")
    command = ["--task", "rerank", "--model", str(model), "--data", f"beir:{tiny_beir}", *SHORT[:1], "2", *SHORT[2:]]
    for name, more, unlabelled_run in (
        ("labels", ["--teacher", str(teachers[1])], False),
        ("none", ["--teacher", str(teachers[1]), "--no-labels"], True),
        ("top", ["--no-labels"], True),  # the teacher is level 100
    ):
        finetune.main([*command, "--output", str(tmp_path / name), *more])
        assert ("rerank without labels" in capsys.readouterr().err) == unlabelled_run, name
    shared = pruned(teachers[1], f"beir:{tiny_beir}", tmp_path / "shared", "--top", "shared")
    command = [*command, "--model", str(shared), "--output", str(tmp_path / "x")]
    with pytest.raises(InputError, match="--no-labels: there is nothing to train on then; give --teacher"):
        finetune.main([*command, "--no-labels"])
    with pytest.raises(InputError, match="no split 'train'"):
        finetune.main([*command, "--data", f"beir:{unlabelled / 'beir'}"])
    with pytest.raises(InputError, match="no labelled sentences"):
        finetune.main(["--task", "classify", "--model", str(shared), "--data", f"text:{unlabelled / 'lines.txt'}",
                       "--output", str(tmp_path / "x")])  # fmt: skip


def test_lengths_of_training_are_those_of_evaluation_and_serving(teachers, tiny_artifact, unlabelled, tmp_path):
    data = f"beir:{unlabelled / 'beir'}"
    model = pruned(teachers[1], data, tmp_path / "pruned")
    assert ElasticModel.from_pretrained(model).config.max_tokens == MaxTokens(64, 64, 64)
    command = ["--data", data, *SHORT[:1], "2", *SHORT[2:], "--query-tokens", "9"]
    finetune.main(["--task", "rerank", "--model", str(model), "--teacher", str(teachers[1]), "--passage-tokens", "11",
                   "--output", str(tmp_path / "reranker"), *command])  # fmt: skip
    reranker = ElasticModel.from_pretrained(tmp_path / "reranker")
    assert (reranker.config.max_tokens, reranker.longest) == (MaxTokens(9, 11, 64), 9 + 11 - 1)
    found = reranker.tokenize_pairs(["ice " * 50], ["rain " * 50])
    assert found["input_ids"].shape[1] == reranker.longest
    assert found.cut == [True]
    finetune.main(["--task", "align", "--model", str(tiny_artifact), "--output", str(tmp_path / "aligned"), *command])
    assert ElasticModel.from_pretrained(tmp_path / "aligned").config.max_tokens == MaxTokens(9, 48, 64)
    with pytest.raises(InputError, match="--passage-tokens 65: the model has 64 positions"):
        finetune.main(["--task", "rerank", "--model", str(model), "--teacher", str(teachers[1]), "--data", data,
                       "--passage-tokens", "65", "--output", str(tmp_path / "x")])  # fmt: skip


@pytest.mark.parametrize("task", ["retrieve", "rerank"])
def test_a_model_keeps_its_lengths_where_none_are_given(task, teachers, tiny_artifact, tiny_beir, tmp_path):
    start = tiny_artifact if task == "retrieve" else pruned(teachers[1], f"beir:{tiny_beir}", tmp_path / "pruned")
    model = ElasticModel.from_pretrained(start)
    model.config.max_tokens = MaxTokens(50, 40, 60)
    model.save_pretrained(tmp_path / "model")
    finetune.main(["--task", task, "--model", str(tmp_path / "model"), "--data", f"beir:{tiny_beir}", *SHORT[:1], "2",
                   *SHORT[2:], "--output", str(tmp_path / "trained")])  # fmt: skip
    assert ElasticModel.from_pretrained(tmp_path / "trained").config.max_tokens == MaxTokens(50, 40, 60)


def test_a_served_reranker_is_evaluated_as_it_is_and_written_into_only_as_an_artifact(
    teachers, tiny_beir, tmp_path, capsys
):
    command = ["--model", str(teachers[1]), "--data", f"beir:{tiny_beir}", "--split", "dev", "--max-queries", "5",
               "--depth", "4", "--output", str(tmp_path / "dev.json")]  # fmt: skip
    evaluate.main(command)
    metrics = json.loads(capsys.readouterr().out.splitlines()[-1])["metrics"]
    assert metrics["100"] == metrics["teacher"]
    config = (teachers[1] / "config.json").read_text()
    for option in ("--calibrate", "--fuse", "--save"):
        with pytest.raises(InputError, match="artifact"):
            evaluate.main([*command, "--overwrite", option])
    assert (teachers[1] / "config.json").read_text() == config


def test_a_classifier_as_the_reference_of_an_artifact(teachers, unlabelled, tmp_path, capsys):
    rows = [{"sentence1": first, "sentence2": second, "label": i % 3}
            for i, (first, second) in enumerate(zip(QUERIES, QUERIES[::-1], strict=True))]  # fmt: skip
    (tmp_path / "labelled").mkdir()
    (tmp_path / "labelled/dev.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = pruned(teachers[3], f"glue:{unlabelled / 'pairs'}", tmp_path / "pruned")
    evaluate.main(["--model", str(model), "--teacher", str(teachers[3]), "--data", f"glue:{tmp_path / 'labelled'}",
                   "--split", "dev", "--output", str(tmp_path / "dev.json")])  # fmt: skip
    metrics = json.loads(capsys.readouterr().out.splitlines()[-1])["metrics"]
    assert metrics["100"] == metrics["teacher"]
    chosen = logits(teachers[3], QUERIES, QUERIES[::-1]).argmax(-1).numpy()
    assert metrics["teacher"]["accuracy"] == pytest.approx((chosen == np.arange(160) % 3).mean(), abs=1e-4)
