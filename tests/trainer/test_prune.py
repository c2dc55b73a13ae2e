"""prune: from a teacher to an artifact."""

import json
import shutil

import numpy as np
import pytest
import safetensors.torch
import torch
from random_texts import make_texts
from transformers import BertConfig, BertForMaskedLM

from elasticlm.errors import InputError
from elasticlm.model.configuration import Passages
from elasticlm.model.elastic_model import ElasticModel
from elasticlm.model.teacher import load_model
from elasticlm.trainer import prune, pruning


@pytest.fixture
def arguments(tiny_bert, beir, tmp_path):
    return ["--teacher", str(tiny_bert), "--data", f"beir:{beir}", "--levels", "100,50,10", "--batch-size", "8",
            "--output", str(tmp_path / "pruned")]  # fmt: skip


def test_level_100_straight_after_prune_is_the_teacher(arguments, tiny_bert, tmp_path, capsys):
    prune.main(arguments)
    model, teacher = ElasticModel.from_pretrained(tmp_path / "pruned"), load_model(str(tiny_bert))
    texts = make_texts(9, seed=8)
    assert (model.embed(texts, level=100) - teacher.embed(texts)).abs().max() < 1e-5
    assert (model.embed(texts, level=50) - teacher.embed(texts)).abs().max() > 1e-2
    assert model.levels == (100, 50, 10)
    assert model.config.passages == Passages("teacher", teacher.fingerprint())
    assert model.config.teacher.name == str(tiny_bert)
    out = capsys.readouterr().out.splitlines()
    assert json.loads(out[-1])["levels"] == [100, 50, 10]
    assert out[0].split()[-1] == "GFLOPs"
    gflops = [float(line.split()[-1]) for line in out[1:4]]
    assert gflops[0] == pytest.approx(3 * (4 * 32**2 + 2 * 32 * 32) * 128 / 1e9, rel=0.01)
    assert gflops[0] > gflops[1] > gflops[2] > 0


@pytest.mark.parametrize("judged", [True, False])
def test_queries_without_passages_find_themselves(arguments, beir, tmp_path, capsys, judged):
    folder = tmp_path / "data"
    shutil.copytree(beir, folder, ignore=None if judged else shutil.ignore_patterns("qrels"))
    (tmp_path / "queries.txt").write_text("\n".join(make_texts(20, seed=2, shortest=1, longest=4)))
    for data in (f"beir:{folder}", f"text:{tmp_path}/queries.txt"):
        prune.main([*arguments, "--data", data, "--overwrite"])
        assert ("finds itself" in capsys.readouterr().err) == (not judged or data.startswith("text:"))
        ElasticModel.from_pretrained(tmp_path / "pruned")


def test_faults_of_judged_data_are_no_reason_to_do_without(arguments, beir, tmp_path):
    shutil.copytree(beir, tmp_path / "data")
    (tmp_path / "data/qrels/train.tsv").write_text("query-id\tcorpus-id\tscore\nq0\tp0\tmuch\n")
    with pytest.raises(InputError, match="line 2"):
        prune.main([*arguments, "--data", f"beir:{tmp_path}/data"])


@pytest.mark.parametrize("loss", ["contrastive", "mlm"])
def test_units_stand_in_the_order_of_their_scores(arguments, tiny_bert, tmp_path, loss):
    args = prune.parse_args([*arguments, "--score-loss", loss])
    teacher = load_model(str(tiny_bert))
    scores = getattr(pruning, f"{loss}_scores")(args, teacher)
    assert (scores.heads > 0).all()
    prune.main([*arguments, "--score-loss", loss])
    model = ElasticModel.from_pretrained(tmp_path / "pruned")
    pruned, whole = model.encoder.layers[1], teacher.encoder.layers[1]
    best = np.argsort(-scores.neurons[1])[: model.structures[50].neurons[1]]
    assert torch.equal(pruned.feed_forward.up.weight, whole.feed_forward.up.weight[best])
    best_head = int(np.argmax(scores.heads[1]))
    assert torch.equal(
        pruned.attention.value.weight[:8], whole.attention.value.weight[best_head * 8 : best_head * 8 + 8]
    )


def test_the_largest_level_is_cut_where_100_is_not_asked_for(arguments, tmp_path):
    prune.main(arguments)
    prune.main([*arguments[:-1], str(tmp_path / "cut"), "--levels", "50,10"])
    whole, cut = ElasticModel.from_pretrained(tmp_path / "pruned"), ElasticModel.from_pretrained(tmp_path / "cut")
    texts = make_texts(5, seed=8)
    assert (cut.embed(texts, level=50) - whole.embed(texts, level=50)).abs().max() < 1e-5
    assert cut.top is None
    assert sum(p.numel() for p in cut.encoder.layers.parameters()) < 0.6 * sum(
        p.numel() for p in whole.top.encoder.layers.parameters()
    )


def test_scores_come_from_a_sample_that_the_seed_decides(arguments, tmp_path):
    def neurons(name, *more):
        prune.main([*arguments[:-1], str(tmp_path / name), "--max-examples", "16", *more])
        return ElasticModel.from_pretrained(tmp_path / name).encoder.layers[0].feed_forward.up.weight

    assert torch.equal(neurons("a"), neurons("b"))
    assert not torch.equal(neurons("c"), neurons("d", "--seed", "1"))


def test_units_and_weights_at_random_are_baselines(arguments, tiny_bert, tmp_path):
    arguments = ["--top", "shared", *arguments]
    prune.main([*arguments, "--score-loss", "random"])
    shuffled = ElasticModel.from_pretrained(tmp_path / "pruned")
    texts = ["how is a glacier cave formed"]
    teacher = load_model(str(tiny_bert))
    assert (shuffled.embed(texts, level=100) - teacher.embed(texts)).abs().max() < 1e-5
    prune.main([*arguments[:-1], str(tmp_path / "fresh"), "--fresh-weights"])
    fresh = ElasticModel.from_pretrained(tmp_path / "fresh")
    assert torch.equal(fresh.encoder.embeddings.word.weight, shuffled.encoder.embeddings.word.weight)
    assert (fresh.embed(texts, level=100) - teacher.embed(texts)).abs().max() > 1e-2


def test_a_teacher_without_masked_language_model_head_is_refused(arguments, tiny_bert, tmp_path):
    folder = tmp_path / "headless"
    shutil.copytree(tiny_bert, folder)
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    safetensors.torch.save_file({name: w for name, w in weights.items() if not name.startswith("cls.")},
                                folder / "model.safetensors", metadata={"format": "pt"})  # fmt: skip
    with pytest.raises(InputError, match="masked language model head"):
        prune.main(["--teacher", str(folder), *arguments[2:], "--score-loss", "mlm"])
    assert not (tmp_path / "pruned").exists()


@pytest.fixture
def other_bert(tiny_bert, tmp_path_factory):
    """The tiny BERT with other weights, and the same sizes."""
    folder = tmp_path_factory.mktemp("other") / "bert"
    shutil.copytree(tiny_bert, folder)
    torch.manual_seed(9)
    BertForMaskedLM(BertConfig.from_pretrained(tiny_bert)).save_pretrained(folder)
    return folder


def test_units_of_the_scored_model_are_kept_with_the_teachers_weights(arguments, tiny_bert, other_bert, tmp_path):
    prune.main([*arguments, "--score-loss", "mlm", "--score-model", str(other_bert)])
    prune.main(["--teacher", str(other_bert), *arguments[2:-1], str(tmp_path / "theirs"), "--score-loss", "mlm"])
    prune.main([*arguments[:-1], str(tmp_path / "own"), "--score-loss", "mlm"])
    kept, theirs, own = (ElasticModel.from_pretrained(tmp_path / name) for name in ("pruned", "theirs", "own"))
    assert dict(kept.structures) == dict(theirs.structures) != dict(own.structures)
    args = prune.parse_args(["--teacher", str(other_bert), *arguments[2:], "--score-loss", "mlm"])
    scores = pruning.mlm_scores(args, load_model(str(other_bert)))
    teacher = load_model(str(tiny_bert))
    for layer in range(3):
        best = np.argsort(-scores.neurons[layer])[: kept.structures[50].neurons[layer]]
        found = kept.encoder.layers[layer].feed_forward.up.weight[: len(best)]
        assert torch.equal(found, teacher.encoder.layers[layer].feed_forward.up.weight[best])
    assert kept.config.passages == Passages("teacher", teacher.fingerprint())
    assert kept.config.teacher.name == str(tiny_bert)


def test_a_score_model_of_other_sizes_or_without_use_is_refused(arguments, tiny_bert, tiny_artifact, tmp_path_factory):
    smaller = tmp_path_factory.mktemp("smaller") / "bert"
    shutil.copytree(tiny_bert, smaller)
    config = BertConfig.from_pretrained(tiny_bert, num_hidden_layers=2)
    BertForMaskedLM(config).save_pretrained(smaller)
    for wrong, message in [
        (["--score-model", str(smaller)], "expected a whole model of the teacher's family and sizes"),
        (["--score-model", str(tiny_artifact)], "expected a whole model"),
        (["--score-model", str(tiny_bert), "--score-loss", "random"], "no model is scored"),
        (["--score-model", str(tiny_bert), "--levels", "100"], "no model is scored"),
        (["--score-model", "./nowhere"], "--score-model ./nowhere"),
    ]:
        with pytest.raises(InputError, match=message):
            prune.main([*arguments, *wrong])


def test_bad_inputs_are_refused_and_leave_nothing(arguments, tiny_artifact, tmp_path):
    for wrong, message in [
        (["--levels", "100,0"], "level '0'"),
        (["--levels", "50,50"], "duplicate level"),
        (["--split", "nowhere"], "nowhere"),
        (["--data", "beir:nowhere"], "nowhere"),
        (["--teacher", str(tiny_artifact)], "elastic model"),
        (["--temperature", "0"], "temperature"),
        (["--batch-size", "1"], "batch-size"),
    ]:
        with pytest.raises(InputError, match=message):
            prune.main([*arguments, *wrong])
    assert not list(tmp_path.iterdir())
    (tmp_path / "pruned").mkdir()
    (tmp_path / "pruned/something").write_text("kept")
    with pytest.raises(InputError, match="overwrite"):
        prune.main(arguments)
    assert (tmp_path / "pruned/something").read_text() == "kept"
