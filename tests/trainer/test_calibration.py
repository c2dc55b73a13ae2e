"""Calibration: the sigmoid is found again, the error is its definition, artifacts carry it and answers tell it."""

import json

import numpy as np
import pytest
import torch
from scipy.special import expit

from elasticlm.errors import InputError
from elasticlm.model.artifact import read_config
from elasticlm.model.configuration import Calibration
from elasticlm.model.elastic_model import ElasticModel
from elasticlm.model.structure import ElasticStructure
from elasticlm.trainer import evaluate
from elasticlm.trainer.evaluation.calibration import expected_calibration_error, fit, report


def drawn(a, b, count=20_000):
    random = np.random.default_rng(0)
    scores = random.normal(3, 20, count)
    return scores, random.random(count) < expit(a * scores + b)


def test_the_sigmoid_that_made_the_labels_is_found():
    assert fit(*drawn(0.1, -1.0)) == pytest.approx((0.1, -1.0), rel=0.1)


def test_what_cannot_be_calibrated_is_said():
    scores, relevant = drawn(0.1, 0.0, 500)
    with pytest.raises(InputError, match="not more often relevant"):
        fit(-scores, relevant)
    with pytest.raises(InputError, match="pairs that are not"):
        fit(scores, np.ones(500, dtype=bool))


def test_the_error_is_0_of_what_is_so_and_the_distance_of_what_is_not():
    relevant = np.arange(3000) % 4 == 0
    assert expected_calibration_error(np.full(3000, 0.25), relevant) == pytest.approx(0)
    assert expected_calibration_error(np.full(3000, 0.85), relevant) == pytest.approx(0.6)


def test_levels_of_another_scale_decide_alike_once_calibrated():
    scores, relevant = drawn(0.2, -2.0)
    levels = {"100": scores, "10": scores / 5 + 7}
    found = report(levels, relevant, {name: fit(values, relevant) for name, values in levels.items()})
    assert found["10"]["raw"]["decisions_changed"] > 0.3
    assert found["10"]["calibrated"]["decisions_changed"] < 0.01
    assert found["10"]["calibrated"]["ece"] < 0.02 < found["10"]["raw"]["ece"]


def test_it_is_fitted_on_dev_written_into_the_artifact_and_measured_on_test(tiny_artifact, tiny_beir, tmp_path):
    model = ElasticModel.from_pretrained(tiny_artifact).with_head("score")
    folder = tmp_path / "reranker"
    model.save_pretrained(folder)
    command = ["--model", str(folder), "--data", f"beir:{tiny_beir}", "--depth", "8", "--levels", "100"]

    def calibrated():
        evaluate.main(
            [*command, "--split", "train", "--calibrate", "--output", str(tmp_path / "dev.json"), "--overwrite"]
        )

    try:
        calibrated()
    except InputError:  # a random head may rank the wrong way round: turn it
        model.head.weight.data.neg_()
        model.save_pretrained(folder, overwrite=True)
        calibrated()
    fitted = read_config(folder).calibration.by_level
    assert set(fitted) == {"100"}
    evaluate.main([*command, "--split", "test", "--output", str(tmp_path / "test.json")])
    assert set(json.loads((tmp_path / "test.json").read_text())["calibration"]) == {"100"}
    loaded = ElasticModel.from_pretrained(folder)
    a, b = fitted["100"]
    scores = torch.tensor([0.5, 2.0])
    assert torch.allclose(loaded.probabilities(scores, 100), torch.sigmoid(a * scores + b))
    assert loaded.probabilities(scores, 10) is None
    assert loaded.with_head("score").config.calibration == Calibration()
    small = loaded.cut(ElasticStructure({50: loaded.structures[50]}))
    small.save_pretrained(tmp_path / "small")
    assert ElasticModel.from_pretrained(tmp_path / "small").probabilities(scores, 50) is None
    with pytest.raises(InputError, match="other than test"):
        evaluate.main([*command, "--split", "test", "--calibrate", "--output", str(tmp_path / "other.json")])
    with pytest.raises(InputError, match="'embed'"):
        evaluate.main(["--model", str(tiny_artifact), "--data", f"beir:{tiny_beir}", "--split", "dev", "--calibrate",
                       "--output", str(tmp_path / "other.json")])  # fmt: skip


@pytest.mark.parametrize("broken", [{"7": [1.0, 0.0]}, {"50": [0.0, 1.0]}, {"50": [1.0]}])
def test_a_broken_calibration_is_refused_with_its_field(tiny_artifact, tmp_path, broken):
    model = ElasticModel.from_pretrained(tiny_artifact).with_head("score")
    model.save_pretrained(tmp_path / "reranker")
    file = tmp_path / "reranker/config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"calibration": broken}))
    with pytest.raises(InputError, match=r"calibration\."):
        ElasticModel.from_pretrained(tmp_path / "reranker")
