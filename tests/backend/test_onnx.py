"""The backend onnx: graphs as near to PyTorch as they claim to be, and refused where they are not."""

import json
import shutil
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import psutil
import pytest
import torch
from transformers import BertConfig, BertModel

from elasticlm.backend import onnx_export, onnx_graph
from elasticlm.backend import onnx_runtime as onnx
from elasticlm.backend.graph_hashes import graphs_folder
from elasticlm.backend.onnx_export import export
from elasticlm.backend.onnx_runtime import EXPORT_FILE
from elasticlm.errors import InputError
from elasticlm.model.artifact import write_weights
from elasticlm.model.elastic_model import ElasticModel
from elasticlm.model.structure import ElasticStructure
from elasticlm.model.teacher import load_model

TEXTS = ["how does ice form", "glacier", "the sun and the moon and the sea", "rain in the cave " * 8]


@pytest.fixture
def artifact(tiny_artifact, tmp_path):
    return shutil.copytree(tiny_artifact, tmp_path / "artifact")


@pytest.fixture
def exported(artifact):
    export(ElasticModel.from_pretrained(artifact), artifact, "fp32", TEXTS)
    return artifact


@pytest.mark.parametrize("texts", [TEXTS, TEXTS[:1], TEXTS[:1] * 3], ids=["padded", "alone", "alike"])
def test_every_level_answers_as_in_pytorch_with_padding_and_without(exported, texts):
    ours, theirs = (ElasticModel.from_pretrained(exported, backend=backend) for backend in ("onnx", "torch"))
    for level in theirs.levels:
        max_diff = (ours.embed(texts, level=level) - theirs.embed(texts, level=level)).abs().max()
        assert max_diff < 1e-5, (level, max_diff)


def test_a_long_padded_batch_runs_without_its_padding_wherever_that_stands(exported, monkeypatch):
    monkeypatch.setattr(onnx, "SPLIT_FROM", 30)
    ours, theirs = (ElasticModel.from_pretrained(exported, backend=backend) for backend in ("onnx", "torch"))
    inputs = theirs.tokenize([*TEXTS, TEXTS[0]])
    tokens, lengths = inputs["input_ids"].shape[1], inputs["attention_mask"].sum(1).tolist()
    calls = []
    run = ours.backend._call
    ours.backend._call = lambda x, mask, level: calls.append(mask.shape) or run(x, mask, level)
    assert (ours.encode(inputs, 50) - theirs.encode(inputs, 50)).abs().max() < 1e-5
    assert sorted(calls) == sorted((lengths.count(length), length) for length in set(lengths))
    turned = {name: tensor.flip(1) for name, tensor in inputs.items()}  # padding in front: run as it is
    assert (ours.encode(turned, 50) - theirs.encode(turned, 50)).abs().max() < 1e-5
    assert calls[-1] == (5, tokens)


@pytest.mark.parametrize(("task", "labels"), [("score", None), ("classify", ["no", "yes"])])
def test_pairs_with_token_types_answer_as_in_pytorch(artifact, task, labels):
    model = ElasticModel.from_pretrained(artifact).with_head(task, labels)
    model.save_pretrained(artifact, overwrite=True)
    export(model, artifact, "fp32", TEXTS)
    ours = ElasticModel.from_pretrained(artifact, backend="onnx")
    inputs = model.tokenize_pairs([TEXTS[0]] * 4, TEXTS)
    for level in model.levels:
        max_diff = (ours.encode(inputs, level) - model.encode(inputs, level)).abs().max()
        assert max_diff < 1e-5, (level, max_diff)


@pytest.mark.parametrize("activation", ["gelu_new", "relu"])
def test_other_activations(artifact, activation):
    config = json.loads((artifact / "config.json").read_text())
    (artifact / "config.json").write_text(json.dumps(config | {"hidden_act": activation}))
    found = export(ElasticModel.from_pretrained(artifact), artifact, "fp32", TEXTS)
    assert max(level["max_diff"] for level in found.values()) < 1e-5


def test_int8_is_near_and_says_how_near(artifact, monkeypatch):
    monkeypatch.setattr(onnx_export, "LEAST_COSINE", 0.9)  # a tiny random model is no match for eight bits
    found = export(ElasticModel.from_pretrained(artifact), artifact, "int8", TEXTS)
    assert set(found) == {"100", "50", "10"}
    assert all(0.9 < level["cosine"] < 0.999999 for level in found.values()), found
    report = json.loads((graphs_folder(artifact, "int8") / EXPORT_FILE).read_text())
    assert report["levels"] == found
    ours, theirs = (ElasticModel.from_pretrained(artifact, backend=backend, precision=precision)
                    for backend, precision in (("onnx", "int8"), ("torch", "fp32")))  # fmt: skip
    cosines = (ours.embed(TEXTS) * theirs.embed(TEXTS)).sum(-1)
    assert cosines.mean() > 0.9


def test_a_graph_that_is_not_near_enough_is_not_exported(artifact, monkeypatch):
    model = ElasticModel.from_pretrained(artifact)
    for precision, name, limit in (("fp32", "MOST_DIFFERENCE", 0.0), ("int8", "LEAST_COSINE", 1.1)):
        monkeypatch.setattr(onnx_export, name, limit)
        with pytest.raises(InputError, match=r"level 100: .*nothing was exported"):
            export(model, artifact, precision, TEXTS)
        assert not graphs_folder(artifact, precision).exists()


def test_layers_stay_on_disk_and_embeddings_are_shared(exported):
    model = ElasticModel.from_pretrained(exported, backend="onnx")
    assert not any(name.startswith("encoder.layers") for name in model.state_dict())
    word = model.encoder.embeddings.word.weight.detach()
    before = model.embed(["a glacier"])
    word[model.tokenizer.convert_tokens_to_ids("glacier"), 0] += 1
    assert (model.embed(["a glacier"]) - before).abs().max() > 1e-3  # the backend reads the model's own table


def test_graphs_of_other_weights_are_refused(exported):
    model = ElasticModel.from_pretrained(exported)
    with torch.no_grad():
        model.encoder.embeddings.norm.bias += 1
    write_weights(exported, model.state_dict())
    with pytest.raises(InputError, match="made from other weights"):
        ElasticModel.from_pretrained(exported, backend="onnx")


def test_what_is_not_there_is_refused(exported):
    with pytest.raises(InputError, match=r"no ONNX graphs in int8; make them with .* --onnx int8"):
        ElasticModel.from_pretrained(exported, backend="onnx", precision="int8")
    with pytest.raises(InputError, match="precision 'int4', expected fp32 or int8"):
        ElasticModel.from_pretrained(exported, backend="onnx", precision="int4")
    with pytest.raises(InputError, match="backend 'tensorrt': expected torch or onnx"):
        ElasticModel.from_pretrained(exported, backend="tensorrt")
    (graphs_folder(exported, "fp32") / "50.onnx").write_bytes(b"nothing")
    forget_hashes(exported)
    with pytest.raises(InputError, match=r"50\.onnx: ONNX Runtime cannot load it"):
        ElasticModel.from_pretrained(exported, backend="onnx")


def forget_hashes(artifact):
    """Make the artifact one from before config.json listed graphs."""
    config = json.loads((artifact / "config.json").read_text())
    del config["graphs"]
    (artifact / "config.json").write_text(json.dumps(config))


def test_quantised_columns_keep_their_own_scale():
    from elasticlm.backend.onnx_graph import quantise_columns

    weight = np.array([[1.0, -0.001, 0.0], [-2.0, 0.002, 0.0]], np.float32)
    quantised, scales = quantise_columns(weight)
    assert quantised.dtype == np.int8
    assert np.abs(quantised * scales - weight).max(0) == pytest.approx([0, 0, 0], abs=0.01)
    assert quantised[:, 1].tolist() == [-64, 127]


def test_a_corpus_is_encoded_on_onnx_runtime_and_the_model_is_as_before(artifact):
    model = ElasticModel.from_pretrained(artifact)
    before, expected = model.backend, model.embed(TEXTS)
    with onnx_export.on_onnx_runtime(model):
        assert model.backend.name == "onnx"
        assert (model.embed(TEXTS) - expected).abs().max() < 1e-5
    assert model.backend is before
    model.config.hidden_act = "tanh"
    with onnx_export.on_onnx_runtime(model):
        assert model.backend.name == "torch"
    assert model.backend is before


def test_neurons_far_above_the_others_stay_in_fp32(artifact, monkeypatch):
    monkeypatch.setattr(onnx_export, "LEAST_COSINE", 0.5)
    model = ElasticModel.from_pretrained(artifact)
    with torch.no_grad():
        for layer in model.encoder.layers:
            layer.feed_forward.up.bias[1] += 100
            layer.feed_forward.down.weight[:, 1] /= 100
    model.save_pretrained(artifact, overwrite=True)
    found = onnx_export.calibrate(model, 100, [model.tokenize(TEXTS)])
    assert all(1 in neurons for neurons in found.in_fp32.values() if neurons)
    apart = export(model, artifact, "int8", TEXTS)
    monkeypatch.setattr(onnx_export, "IN_FP32", 0)
    together = export(model, artifact, "int8", TEXTS)
    assert 1 - apart["100"]["cosine"] < 0.5 * (1 - together["100"]["cosine"])


def test_channels_far_above_the_others_keep_the_precision_of_the_others(artifact, monkeypatch):
    """As in MPNet: LayerNorm's weight lets one channel reach far, and the product takes it back."""
    monkeypatch.setattr(onnx_export, "LEAST_COSINE", 0.5)
    model = ElasticModel.from_pretrained(artifact)
    with torch.no_grad():
        for layer in model.encoder.layers:
            layer.attention_norm.weight[1] *= 50
            layer.attention_norm.bias[1] *= 50
            layer.feed_forward.up.weight[:, 1] /= 50
            layer.feed_forward_norm.weight[1] *= 50
    model.save_pretrained(artifact, overwrite=True)
    scaled = export(model, artifact, "int8", TEXTS)
    monkeypatch.setattr(onnx_graph, "channel_scales", lambda reach, weight: torch.ones_like(reach))
    plain = export(model, artifact, "int8", TEXTS)
    assert 1 - scaled["100"]["cosine"] < 0.5 * (1 - plain["100"]["cosine"])


def test_a_corpus_is_encoded_in_fp32_whatever_runs_the_levels(artifact, monkeypatch):
    monkeypatch.setattr(onnx_export, "LEAST_COSINE", 0.5)
    model = ElasticModel.from_pretrained(artifact)
    expected = model.embed(TEXTS)
    export(model, artifact, "int8", TEXTS)
    model.run_onnx(artifact, precision="int8")
    assert (model.embed(TEXTS) - expected).abs().max() > 1e-3
    with onnx_export.on_onnx_runtime(model):
        assert (model.embed(TEXTS) - expected).abs().max() < 1e-5
    assert model.backend.precision == "int8"


def memory_added_by_all_lengths(folder):
    """How much resident memory a process gains, in bytes, while it runs each length three times after the longest."""
    model = ElasticModel.from_pretrained(folder, backend="onnx")

    def run(tokens):
        ids = torch.full((1, int(tokens)), 7)
        model.encode({"input_ids": ids, "attention_mask": torch.ones_like(ids)}, 100)

    for _ in range(2):
        run(512)
    start = psutil.Process().memory_info().rss
    for seed in range(3):
        for tokens in np.random.default_rng(seed).permutation(512) + 1:
            run(tokens)
    return psutil.Process().memory_info().rss - start


@pytest.mark.slow
def test_memory_is_flat_over_texts_of_all_lengths(tiny_bert, tmp_path):
    torch.manual_seed(0)
    shutil.copytree(tiny_bert, tmp_path / "teacher")
    config = BertConfig.from_pretrained(tiny_bert, hidden_size=128, intermediate_size=512, num_hidden_layers=2,
                                        max_position_embeddings=512)  # fmt: skip
    BertModel(config).save_pretrained(tmp_path / "teacher")
    random = np.random.default_rng(0)
    structures = ElasticStructure.from_scores(random.random((2, 4)), random.random((2, 512)), [100])
    load_model(str(tmp_path / "teacher")).cut(*structures).save_pretrained(tmp_path / "artifact")
    export(ElasticModel.from_pretrained(tmp_path / "artifact"), tmp_path / "artifact", "fp32", TEXTS)
    # In a process of its own: what other tests have left in the allocator changes the figure.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        added = pool.submit(memory_added_by_all_lengths, tmp_path / "artifact").result()
    assert added < 8 * 2**20  # with memory patterns: 20 MiB and more
