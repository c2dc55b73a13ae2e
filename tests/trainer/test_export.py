import json
import shutil

import pytest
import torch

from elasticlm import ElasticModel, InputError, LatencyTable
from elasticlm.backend import onnx_export
from elasticlm.model.artifact import write_weights
from elasticlm.model.configuration import Passages
from elasticlm.model.teacher import passage_encoder
from elasticlm.schedule.latency import read_tables
from elasticlm.trainer.evaluate import main as evaluate
from elasticlm.trainer.export import main
from elasticlm.trainer.profile import main as profile

TEXTS = ["how does ice form", "the river and the rain"]


@pytest.fixture
def artifact(tiny_artifact, tmp_path):
    """The tiny artifact with a latency table."""
    shutil.copytree(tiny_artifact, tmp_path / "model")
    LatencyTable.from_means({100: 3.0, 50: 2.0, 10: 1.0}).write(tmp_path / "model/latency.csv")
    return tmp_path / "model"


def test_an_exported_level_is_the_level_alone(artifact, tmp_path):
    main(["--model", str(artifact), "--level", "10", "--output", str(tmp_path / "ten")])
    whole, alone = ElasticModel.from_pretrained(artifact), ElasticModel.from_pretrained(tmp_path / "ten")
    assert alone.levels == (10,)
    assert (alone.embed(TEXTS) - whole.embed(TEXTS, level=10)).abs().max() < 1e-5
    assert sum(p.numel() for p in alone.parameters()) < sum(p.numel() for p in whole.parameters())
    assert LatencyTable.read(tmp_path / "ten/latency.csv").levels == (10,)
    assert passage_encoder(alone).fingerprint() == whole.config.passages.fingerprint


def test_passages_of_an_exported_level_stay_with_the_largest_that_encoded_them(artifact, tmp_path):
    model = ElasticModel.from_pretrained(artifact)
    model.config.passages = Passages("largest", model.fingerprint())
    model.save_pretrained(artifact, overwrite=True)
    main(["--model", str(artifact), "--level", "50", "--output", str(tmp_path / "fifty")])
    alone = ElasticModel.from_pretrained(tmp_path / "fifty")
    assert alone.config.passages.encoder == "teacher"
    assert passage_encoder(alone).fingerprint() == model.fingerprint()


def test_a_level_that_is_not_there_is_refused_and_nothing_written(artifact, tmp_path):
    with pytest.raises(InputError, match="level 30 is not among"):
        main(["--model", str(artifact), "--level", "30", "--output", str(tmp_path / "thirty")])
    assert not (tmp_path / "thirty").exists()


def test_graphs_stand_in_the_artifact_with_what_they_cost(artifact, tiny_beir, monkeypatch, capsys):
    monkeypatch.setattr(onnx_export, "LEAST_COSINE", 0.5)  # a tiny random model is no match for eight bits
    main(["--model", str(artifact), "--onnx", "fp32", "int8", "--data", f"beir:{tiny_beir}"])
    found = json.loads(capsys.readouterr().out.splitlines()[-1])["onnx"]
    for name, level in found["fp32"].items():
        assert level["max_diff"] < 1e-5, name
        assert level["RR@10"] == level["RR@10 torch"] > 0
        assert found["int8"][name]["RR@10 torch"] == level["RR@10 torch"]
        assert found["int8"][name]["cosine"] < level["cosine"]
    assert {file.name for file in (artifact / "onnx/int8").iterdir()} == {
        "100.onnx",
        "50.onnx",
        "10.onnx",
        "export.json",
        "reference.safetensors",
    }
    profile(["--model", str(artifact), "--rows", "1", "--tokens", "16", "--seconds", "0", "--min-runs", "2"])
    setups = {(table.setup.backend, table.setup.precision) for table in read_tables(artifact / "latency.csv")}
    assert {("torch", "fp32"), ("onnx", "fp32"), ("onnx", "int8")} <= setups
    evaluate(["--model", str(artifact), "--data", f"beir:{tiny_beir}", "--backend", "onnx", "--precision", "int8",
              "--output", str(artifact / "int8.json"), "--save"])  # fmt: skip
    evaluate(
        ["--model", str(artifact), "--data", f"beir:{tiny_beir}", "--output", str(artifact / "fp32.json"), "--save"]
    )
    int8, fp32 = (json.loads((artifact / name).read_text()) for name in ("int8.json", "fp32.json"))
    assert (int8["backend"], int8["precision"]) == ("onnx", "int8")
    assert int8["metrics"]["teacher"] == fp32["metrics"]["teacher"]
    assert set(json.loads((artifact / "quality.json").read_text())) == {
        f"beir:{tiny_beir}#test", f"beir:{tiny_beir}#test#int8"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--level", "10"], "--output DIR"),
        (["--level", "10", "--output", "x", "--onnx", "fp32"], "expected --level"),
        ([], "expected --level"),
    ],
)
def test_one_thing_at_a_time(artifact, options, says):
    with pytest.raises(InputError, match=says):
        main(["--model", str(artifact), *options])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--backend", "torch", "--precision", "int8"], "PyTorch runs levels in fp32"),
        (["--precision", "int8"], "no ONNX graphs in int8; make them with"),
    ],
)
def test_profile_refuses_what_was_not_exported(artifact, options, says):
    with pytest.raises(InputError, match=says):
        profile(["--model", str(artifact), *options])


def test_profile_exports_fp32_graphs_anew_where_they_are_of_other_weights(artifact, capsys):
    given = ["--model", str(artifact), "--rows", "1", "--tokens", "8", "--seconds", "0", "--min-runs", "1"]
    profile(given)
    assert {s["backend"] for s in json.loads(capsys.readouterr().out.splitlines()[-1])["setups"]} == {"torch", "onnx"}
    model = ElasticModel.from_pretrained(artifact)
    with torch.no_grad():
        model.encoder.embeddings.norm.bias += 1
    write_weights(artifact, model.state_dict())
    profile([*given, "--backend", "onnx"])
    assert (ElasticModel.from_pretrained(artifact, backend="onnx").embed(TEXTS) - model.embed(TEXTS)).abs().max() < 1e-5


def test_profile_goes_on_without_graphs_where_a_model_can_have_none(artifact, capsys):
    config = json.loads((artifact / "config.json").read_text())
    (artifact / "config.json").write_text(json.dumps(config | {"hidden_act": "tanh"}))
    profile(["--model", str(artifact), "--rows", "1", "--tokens", "8", "--seconds", "0", "--min-runs", "1"])
    found = capsys.readouterr()
    assert "hidden_act 'tanh' is not supported" in found.err
    assert [s["backend"] for s in json.loads(found.out.splitlines()[-1])["setups"]] == ["torch"]
