"""finetune --task classify and evaluate: classes, values, a teacher; measures against their definitions."""

import json

import numpy as np
import pytest
import torch
from random_texts import make_texts
from torch.nn import functional as F

from elasticlm.errors import InputError
from elasticlm.model.configuration import Passages
from elasticlm.model.elastic_model import ElasticModel
from elasticlm.trainer import evaluate, finetune, prune
from elasticlm.trainer.evaluation.classification import measures_of
from elasticlm.trainer.objectives.fine_tuning import match_losses, state_losses
from elasticlm.trainer.training_texts import TokenizedTexts

SHORT = ["--max-steps", "60", "--batch-size", "16", "--lr", "3e-3", "--precision", "fp32", "--threads", "1"]


@pytest.fixture(scope="module")
def glue(tmp_path_factory):
    """Folder of sets whose label is told by the first word: `classes` (pairs), `values` (a regression, single)."""
    folder = tmp_path_factory.mktemp("glue")
    texts = make_texts(320, seed=3, shortest=4, longest=8)
    for name in ("classes", "values"):
        (folder / name).mkdir()
        for split, part in (("train", texts[:240]), ("dev", texts[240:])):
            rows = []
            for i in range(0, len(part), 2):
                label = i // 2 % 2
                first = ("glacier " if label else "sun ") + part[i]
                second, target = (part[i + 1], label) if name == "classes" else (None, 4.5 * label + 0.25)
                rows.append(json.dumps({"sentence1": first, "sentence2": second, "label": target}))
            (folder / name / f"{split}.jsonl").write_text("\n".join(rows) + "\n")
    return folder


def train(artifact, glue, name, output, *more):
    finetune.main(["--task", "classify", "--model", str(artifact), "--data", f"glue:{glue / name}", *SHORT,
                   "--output", str(output), *more])  # fmt: skip


def measured(capsys):
    return json.loads(capsys.readouterr().out.splitlines()[-1])


@pytest.mark.slow
def test_every_level_learns_classes_is_measured_and_served_by_name(tiny_artifact, glue, tmp_path, capsys):
    train(tiny_artifact, glue, "classes", tmp_path / "out")
    model = ElasticModel.from_pretrained(tmp_path / "out")
    assert (model.config.task, model.config.labels, model.config.passages) == ("classify", ("0", "1"), Passages())
    evaluate.main(["--model", str(tmp_path / "out"), "--data", f"glue:{glue / 'classes'}", "--split", "dev",
                   "--output", str(tmp_path / "dev.json"), "--save"])  # fmt: skip
    found = measured(capsys)
    assert list(found["metrics"]) == ["teacher", "100", "50", "10", "majority"]
    assert found["metrics"]["majority"]["accuracy"] == 0.5
    for level in ("100", "50"):
        assert found["metrics"][level]["accuracy"] > 0.8, level
    assert found["metrics"]["teacher"] == found["metrics"]["100"]
    assert found["retention"]["100"]["F1"] == [1.0, 1.0, 1.0]
    quality = json.loads((tmp_path / "out/quality.json").read_text())
    assert quality[f"glue:{glue / 'classes'}#dev"]["queries"] == 40


def test_values_are_a_regression_and_a_teacher_teaches_and_is_measured_against(tiny_artifact, glue, tmp_path, capsys):
    train(tiny_artifact, glue, "values", tmp_path / "teacher", "--levels-per-step", "largest")
    train(tiny_artifact, glue, "values", tmp_path / "out", "--teacher", str(tmp_path / "teacher"))
    evaluate.main(["--model", str(tmp_path / "out"), "--data", f"glue:{glue / 'values'}", "--split", "dev",
                   "--teacher", str(tmp_path / "teacher"), "--levels", "50",
                   "--output", str(tmp_path / "dev.json")])  # fmt: skip
    found = measured(capsys)
    assert list(found["metrics"]) == ["teacher", "50"]
    assert found["metrics"]["50"]["Spearman"] > 0.6
    assert list(json.loads((tmp_path / "dev.json").read_text())["per_query"]["50"]) == ["squared error"]


def test_a_further_training_keeps_the_head_and_refuses_other_labels(tiny_artifact, glue, tmp_path):
    train(tiny_artifact, glue, "classes", tmp_path / "first", "--max-steps", "2")
    train(tmp_path / "first", glue, "classes", tmp_path / "second", "--max-steps", "1", "--lr", "1e-9")
    heads = [ElasticModel.from_pretrained(tmp_path / name).head.weight for name in ("first", "second")]
    assert torch.allclose(*heads, atol=1e-6)
    with pytest.raises(InputError, match=r"train.jsonl, line 1: unknown label 0.25"):
        train(tmp_path / "first", glue, "values", tmp_path / "other")
    with pytest.raises(InputError, match="its task is 'embed', not 'classify'"):
        train(tiny_artifact, glue, "classes", tmp_path / "other", "--teacher", str(tiny_artifact))
    with pytest.raises(InputError, match="one data spec: several"):
        train(
            tiny_artifact,
            glue,
            "classes",
            tmp_path / "other",
            "--data",
            f"glue:{glue / 'classes'}",
            f"glue:{glue / 'values'}",
        )
    with pytest.raises(InputError, match="other labels"):
        evaluate.main(["--model", str(tmp_path / "first"), "--data", f"glue:{glue / 'classes'}", "--split", "dev",
                       "--teacher", str(tiny_artifact), "--output", str(tmp_path / "dev.json")])  # fmt: skip


def test_a_classifier_fine_tuned_whole_is_pruned_by_its_own_loss_and_teaches_the_levels(
    tiny_bert, glue, tmp_path, capsys
):
    data = ["--data", f"glue:{glue / 'classes'}"]
    prune.main(["--teacher", str(tiny_bert), *data, "--levels", "100", "--output", str(tmp_path / "whole")])
    train(tmp_path / "whole", glue, "classes", tmp_path / "teacher")
    again = ["--teacher", str(tmp_path / "teacher"), *data, "--levels", "100,50,10", "--max-examples", "40"]
    prune.main([*again, "--output", str(tmp_path / "pruned")])
    teacher, pruned = (ElasticModel.from_pretrained(tmp_path / name) for name in ("teacher", "pruned"))
    assert (pruned.levels, pruned.config.task, pruned.config.labels) == ((100, 50, 10), "classify", ("0", "1"))
    pairs = [("sun and ice", "a bear"), ("glacier", "the wind and the rain")]
    inputs = TokenizedTexts.of_pairs(teacher, pairs).inputs(np.arange(2))
    assert torch.allclose(pruned.encode(inputs, 100), teacher.encode(inputs, 100), atol=1e-5)

    train(tmp_path / "pruned", glue, "classes", tmp_path / "out", "--teacher", str(tmp_path / "teacher"),
          "--max-steps", "20")  # fmt: skip
    log = [line.split(",") for line in (tmp_path / "out/loss.csv").read_text().splitlines()]
    dev = [float(loss) for _, split, level, loss, _ in log[1:] if (split, level) == ("dev", "50")]
    assert dev[-1] < dev[0]
    assert "minutes for the remaining 15 steps" in capsys.readouterr().err
    with pytest.raises(InputError, match="--score-loss contrastive: does not go with a teacher of task 'classify'"):
        prune.main([*again, "--score-loss", "contrastive", "--output", str(tmp_path / "other")])
    with pytest.raises(InputError, match="is an elastic model"):
        prune.main(["--teacher", str(tmp_path / "pruned"), *data, "--output", str(tmp_path / "other")])


def test_state_losses_count_tokens_and_no_padding():
    teacher = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    hidden, mask = teacher.clone(), torch.tensor([[1, 1, 0], [1, 1, 1]])
    hidden[0, 2] = -7.0  # padding
    hidden[1, 0] *= -2  # the opposite way: 1 - cosine is 2
    assert state_losses(hidden, teacher, mask).tolist() == pytest.approx([0.0, 2 / 3], abs=1e-6)


def test_pairs_are_tokenised_as_the_model_serves_them(tiny_artifact):
    model = ElasticModel.from_pretrained(tiny_artifact)
    pairs = [("ice and snow", "the sun"), ("wind", "rain in the night and rain"), ("sea", "a bear")]
    texts = TokenizedTexts.of_pairs(model, pairs)
    expected = model.tokenize_pairs(*map(list, zip(*pairs, strict=True)))
    for name, tensor in texts.inputs(np.arange(3)).items():
        assert torch.equal(tensor, expected[name]), name
    part = texts.part(1, 3).inputs(np.array([1]))
    assert part["token_type_ids"].tolist() == [[0, 0, 0, 1, 1, 1]]
    alone = TokenizedTexts.of_pairs(model, [("ice", None), ("snow and ice", None)]).inputs(np.arange(2))
    assert not alone["token_type_ids"].any()


def test_losses_are_cross_entropy_or_squared_error_halved_with_the_teachers():
    outputs, teacher = torch.tensor([[1.0, 2.0], [0.0, -1.0]]), torch.tensor([[0.5, 0.0], [2.0, 2.0]])
    targets = torch.tensor([0, 1])
    own = F.cross_entropy(outputs, targets, reduction="none")
    assert torch.equal(match_losses(outputs, targets), own)
    p, q = teacher.softmax(-1), outputs.softmax(-1)
    assert torch.allclose(match_losses(outputs, targets, teacher), (own + (p * (p / q).log()).sum(-1)) / 2)
    values = torch.tensor([[1.0], [3.0]])
    assert match_losses(values, torch.tensor([2.0, 3.0])).tolist() == [1.0, 0.0]
    assert match_losses(values, torch.tensor([2.0, 3.0]), torch.tensor([[1.0], [1.0]])).tolist() == [0.5, 2.0]


def test_measures_are_glues():
    binary = measures_of(["no", "yes"])
    found, targets = np.array([1, 1, 0, 0]), np.array([1, 0, 1, 0])
    assert {name: measure(found, targets) for name, measure in binary.items()} == {"accuracy": 0.5, "F1": 0.5}
    assert list(measures_of(["a", "b", "c"])) == ["accuracy"]
    values = measures_of(["similarity"])
    assert values["Spearman"](np.array([1.0, 2, 9]), np.array([0.0, 1, 2])) == pytest.approx(1)
    assert np.isnan(values["Spearman"](np.ones(3), np.array([0.0, 1, 2])))
