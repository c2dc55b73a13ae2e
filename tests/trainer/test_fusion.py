"""Fusion with the first stage: one scale a list, the weight that is best on dev, artifacts carry it."""

import json

import numpy as np
import pytest

from elasticlm.errors import InputError
from elasticlm.model.artifact import read_config
from elasticlm.model.configuration import Fusion
from elasticlm.model.elastic_model import ElasticModel
from elasticlm.model.structure import ElasticStructure
from elasticlm.retrieval.score_fusion import fused, on_one_scale
from elasticlm.trainer import evaluate, finetune
from elasticlm.trainer.evaluation.fusion_weights import WEIGHTS, fit, fuse

QRELS = {"q1": {"a": 1}, "q2": {"d": 1}}
FIRST = {"q1": {"a": 30.0, "b": 20.0, "c": 10.0}, "q2": {"d": 0.9, "e": 0.8}}


@pytest.mark.parametrize(
    ("scores", "scaled"),
    [([9.0, 7.0, 5.0], [1, 0.5, 0]), ([-0.2, -0.1], [0, 1]), ([3.0, 3.0], [0, 0]), ([4.0], [0]), ([], [])],
)
def test_a_list_goes_from_0_to_1_whatever_its_retrievers_scale(scores, scaled):
    assert on_one_scale(np.array(scores)).tolist() == pytest.approx(scaled)


def test_fused_scores_are_the_rerankers_and_so_much_of_the_first_stages():
    assert fused(np.array([1.0, 2.0, 3.0]), np.array([30.0, 20.0, 10.0]), 4).tolist() == [5, 4, 3]
    assert fuse({"q2": {"e": 1.0, "d": 2.0}}, FIRST, 2)["q2"] == {"e": 1.0, "d": 4.0}


@pytest.mark.parametrize(
    ("reranker", "weight"),
    [
        ({"q1": {"a": 3.0, "b": 2.0, "c": 1.0}, "q2": {"d": 2.0, "e": 1.0}}, 0),  # right already: the smallest
        ({"q1": {"a": 0.0, "b": 3.0, "c": 0.0}, "q2": {"d": 0.0, "e": 1.0}}, 8),  # q1 needs more than 2 x 3
        ({"q1": {"a": 0.0, "b": 0.1, "c": 0.0}, "q2": {"d": 0.0, "e": 1e9}}, 0.25),  # q2 is past help
    ],
)
def test_the_smallest_of_the_best_weights_is_taken(reranker, weight):
    assert weight in WEIGHTS
    assert fit(reranker, FIRST, QRELS, "RR@10") == weight


@pytest.fixture
def reranker(tiny_artifact, tmp_path):
    """Folder with a random reranker."""
    ElasticModel.from_pretrained(tiny_artifact).with_head("score").save_pretrained(tmp_path / "reranker")
    return tmp_path / "reranker"


def test_it_is_fitted_on_dev_written_into_the_artifact_and_measured_on_test(reranker, tiny_beir, tmp_path):
    def evaluated(split, *more):
        command = ["--model", str(reranker), "--data", f"beir:{tiny_beir}", "--depth", "8", "--split", split, *more]
        evaluate.main([*command, "--output", str(tmp_path / f"{split}.json"), "--run-dir", str(tmp_path / split)])
        return json.loads((tmp_path / f"{split}.json").read_text())

    assert "fusion" not in evaluated("test")
    on_dev = evaluated("dev", "--levels", "100,50", "--fuse")
    fitted = read_config(reranker).fusion.by_level
    assert fitted == on_dev["fusion"]
    assert set(fitted) == {"100", "50"}
    assert max(fitted.values()) > 0  # BM25 is right nearly always here, a random head is not
    found = evaluated("test", "--overwrite")
    assert list(found["metrics"]) == [
        "first_stage", "100", "50", "10", "100+first_stage", "50+first_stage", "teacher"
    ]  # fmt: skip
    assert found["metrics"]["100+first_stage"]["RR@10"] > found["metrics"]["100"]["RR@10"]
    assert set(found["above_first_stage"]) == {"100", "50", "10", "100+first_stage", "50+first_stage"}
    assert set(found["retention"]) == {"100", "50", "10"}
    runs = {path.stem for path in (tmp_path / "test").iterdir()}
    assert runs == set(found["metrics"])


def test_it_goes_with_its_levels_its_head_and_further_training(reranker, tiny_beir, tmp_path):
    model = ElasticModel.from_pretrained(reranker)
    model.config.fusion = Fusion({"100": 4.0, "50": 0.5})
    model.config.save_pretrained(reranker)
    finetune.main(["--task", "rerank", "--model", str(reranker), "--data", f"beir:{tiny_beir}", "--max-steps", "1",
                   "--batch-size", "4", "--negatives", "2", "--output", str(tmp_path / "trained")])  # fmt: skip
    assert read_config(tmp_path / "trained").fusion == Fusion()
    assert (model.fusion_weight(50), model.fusion_weight(10)) == (0.5, 0.0)
    assert model.cut(ElasticStructure({50: model.structures[50]})).config.fusion == Fusion({"50": 0.5})
    assert model.with_head("score").config.fusion == Fusion()


@pytest.mark.parametrize("broken", [{"7": 1.0}, {"50": -1.0}, {"50": float("inf")}])
def test_a_broken_fusion_is_refused_with_its_field(reranker, broken):
    config = json.loads((reranker / "config.json").read_text())
    (reranker / "config.json").write_text(json.dumps(config | {"fusion": broken}))
    with pytest.raises(InputError, match=r"fusion\."):
        ElasticModel.from_pretrained(reranker)


@pytest.mark.parametrize(("change", "says"), [(["--split", "test"], "other than test"), (["--model", "X"], "'embed'")])
def test_it_is_not_fitted_on_test_nor_for_an_encoder(reranker, tiny_artifact, tiny_beir, tmp_path, change, says):
    change = [str(tiny_artifact) if part == "X" else part for part in change]
    with pytest.raises(InputError, match=says):
        evaluate.main(["--model", str(reranker), "--data", f"beir:{tiny_beir}", "--split", "dev", "--fuse",
                       "--output", str(tmp_path / "x.json"), *change])  # fmt: skip
