"""For every encoder family, ours computes what Hugging Face's own class does, whole and pruned."""

import numpy as np
import pytest
import torch
from families import LONGEST, TINY, TinyFamily, sentence_pieces, tiny_teacher
from transformers import AutoTokenizer

from elasticlm import ElasticModel, ElasticStructure
from elasticlm.backend.onnx_export import export
from elasticlm.model.families import FAMILIES
from elasticlm.model.families.base import CLASSIFIER
from elasticlm.model.teacher import load_model
from elasticlm.schedule.profiling import text_of
from elasticlm.trainer.training_texts import TokenizedTexts

TEXTS = ["how does ice form", "the river", "why is the mountain cold and the cave warm in a storm", "Glacier, 1!"]
EVERY_FAMILY = pytest.mark.parametrize("name", sorted(FAMILIES))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder for each family, made when it is first asked for, with Hugging Face's model in it."""
    made = {}

    def get(name):
        if name not in made:
            folder = tmp_path_factory.mktemp("families") / name
            made[name] = folder, tiny_teacher(name, folder)
        return made[name]

    return get


def structures(levels=(100, 50, 10)):
    """Levels cut by random scores; the last layer's are the lowest, so that small levels leave layers empty."""
    random, scale = np.random.default_rng(0), np.array([[1.0], [1.0], [0.05]])
    return ElasticStructure.from_scores(random.random((3, 4)) * scale, random.random((3, 48)) * scale, levels, top=True)


def test_every_family_has_a_tiny_teacher():
    assert TINY.keys() == FAMILIES.keys()


@EVERY_FAMILY
@pytest.mark.parametrize("shape", [(3, 1), (2, 2), (4, 9), (2, LONGEST)], ids=str)
def test_hidden_states_are_hugging_faces(folders, name, shape):
    folder, theirs = folders(name)
    model = load_model(folder)
    random = torch.Generator().manual_seed(1)
    ids = torch.randint(5, model.config.vocab_size, shape, generator=random)
    mask = torch.ones_like(ids)
    for padded in (0, shape[1] // 2):
        if padded:
            ids[0, -padded:], mask[0, -padded:] = model.tokenizer.pad_token_id, 0
        inputs = {"input_ids": ids, "attention_mask": mask}
        if model.uses_token_types:
            inputs["token_type_ids"] = torch.randint(2, shape, generator=random)
        with torch.no_grad():
            expected = theirs(**inputs).last_hidden_state
            max_diff = (model.hidden(**inputs, level=100) - expected)[mask.bool()].abs().max()
        assert max_diff < 1e-5, (padded, max_diff)


@EVERY_FAMILY
@pytest.mark.parametrize("labels", [1, 3])
@pytest.mark.parametrize("seconds", [TEXTS[::-1], ["the sun " * 60, "rain", "wind " * 90, "sea"], None],
                         ids=["pairs", "long", "single"])  # fmt: skip
def test_classification_logits_are_hugging_faces(tmp_path, name, labels, seconds):
    pooling = {"classifier_pooling": "mean"} if name == "modernbert" and labels == 3 else {}
    theirs = tiny_teacher(name, tmp_path / "theirs", CLASSIFIER, num_labels=labels, **pooling)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "theirs")
    with torch.no_grad():
        inputs = tokenizer(TEXTS, seconds, padding=True, truncation=True, return_tensors="pt")
        expected = theirs(**inputs).logits
    model = load_model(tmp_path / "theirs")
    assert model.config.task == ("score" if labels == 1 else "classify")
    model.save_pretrained(tmp_path / "ours")
    for ours in (model, ElasticModel.from_pretrained(tmp_path / "ours")):
        tokenized = ours.tokenize_pairs(TEXTS, seconds)
        assert {key: value.tolist() for key, value in tokenized.items()} == {k: v.tolist() for k, v in inputs.items()}
        max_diff = (ours.encode(tokenized, 100).view(4, -1) - expected).abs().max()
        assert max_diff < 1e-5, max_diff


@EVERY_FAMILY
def test_the_same_submodel_four_ways(folders, tmp_path, name):
    """A prefix of the weights, exported alone, Hugging Face's model with zeroed units, an ONNX graph."""
    folder, theirs = folders(name)
    teacher = load_model(folder)
    nested, head_order, neuron_order = structures()
    model = teacher.cut(nested, head_order, neuron_order)
    model.save_pretrained(tmp_path / "ours")
    model = ElasticModel.from_pretrained(tmp_path / "ours")
    export(model, tmp_path / "ours", "fp32", TEXTS)
    onnx = ElasticModel.from_pretrained(tmp_path / "ours", backend="onnx")
    head_size, kept = model.config.head_size, {k: v.clone() for k, v in theirs.state_dict().items()}
    for texts in (TEXTS, [TEXTS[2]], [TEXTS[2] * 3, "ice"]):
        inputs = model.tokenize_pairs(texts, texts[::-1])
        real = inputs["attention_mask"].bool()
        for level in model.levels:
            with torch.no_grad():
                theirs.load_state_dict(kept)
                for i, layer in enumerate(theirs.get_submodule(TINY[name].layers)):
                    heads = layer.get_submodule(TINY[name].heads).weight
                    for head in head_order[i, nested[level].heads[i] :]:
                        heads[:, head * head_size : (head + 1) * head_size] = 0
                    neurons = layer.get_submodule(TINY[name].neurons).weight
                    neurons[:, neuron_order[i, nested[level].neurons[i] :]] = 0
                zeroed = theirs(**inputs).last_hidden_state
                sliced = model.hidden(**inputs, level=level)
            alone = model.cut(ElasticStructure({level: nested[level]}))
            exported = alone.backend.hidden(inputs, level)
            graphed = onnx.backend.hidden(inputs, level)
            assert (sliced - zeroed)[real].abs().max() < 1e-5, level
            assert (sliced - exported)[real].abs().max() < 1e-5, level
            assert (graphed - zeroed)[real].abs().max() < 1e-4, level
    theirs.load_state_dict(kept)


@EVERY_FAMILY
def test_the_teacher_on_top_is_bit_identical(folders, name):
    folder, _ = folders(name)
    teacher = load_model(folder)
    model = teacher.cut(*structures())
    assert torch.equal(model.embed(TEXTS, level=100), teacher.embed(TEXTS))
    assert not torch.allclose(model.embed(TEXTS, level=50), teacher.embed(TEXTS))


@EVERY_FAMILY
def test_language_model_logits_are_hugging_faces(tmp_path, name):
    theirs = tiny_teacher(name, tmp_path, "ForMaskedLM")
    model = load_model(tmp_path)
    inputs = model.tokenize(TEXTS)
    with torch.no_grad():
        expected = theirs(**inputs).logits
        found = FAMILIES[name].load_lm_head(tmp_path)(model.hidden(**inputs, level=100))
    assert (found - expected)[inputs["attention_mask"].bool()].abs().max() < 1e-4


@EVERY_FAMILY
def test_sizes_are_those_of_hugging_faces_model(folders, name):
    folder, theirs = folders(name)
    model = load_model(folder)
    buffers = {"encoder." + key for key, _ in model.encoder.named_buffers()}
    ours = sum(weight.numel() for key, weight in model.state_dict().items() if key not in buffers)
    bias = [p.numel() for key, p in theirs.named_parameters() if "relative_attention_bias" in key]
    assert ours == sum(p.numel() for p in theirs.parameters()) - sum(bias)
    whole = model.config.whole
    blocks = [getattr(layer, kind) for layer in model.encoder.layers for kind in ("attention", "feed_forward")]
    sizes = [(key, p.numel()) for block in blocks for key, p in block.named_parameters()]
    prunable = sum(size for key, size in sizes if key not in ("output.bias", "down.bias"))
    assert FAMILIES[name].prunable_parameters(model.config, whole) == prunable


@EVERY_FAMILY
@pytest.mark.parametrize("tokens", [3, 5, 17, LONGEST])
def test_texts_of_so_many_tokens_for_the_latency_table(folders, name, tokens):
    model = load_model(folders(name)[0])
    assert model.tokenize([text_of(model, tokens)])["attention_mask"].sum() == tokens


def test_berts_layers_go_with_a_tokenizer_that_gives_no_token_types(tmp_path, monkeypatch):
    """As in multilingual-e5-small: BERT's layers behind XLM-RoBERTa's tokenizer. All token types are 0."""
    monkeypatch.setitem(TINY, "bert", TinyFamily(sentence_pieces))
    theirs = tiny_teacher("bert", tmp_path, CLASSIFIER, num_labels=1)
    inputs = AutoTokenizer.from_pretrained(tmp_path)(TEXTS, TEXTS[::-1], padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = theirs(**inputs).logits
    model = load_model(tmp_path)
    pairs = TokenizedTexts.of_pairs(model, zip(TEXTS, TEXTS[::-1], strict=True))
    for ours in (model.tokenize_pairs(TEXTS, TEXTS[::-1]), pairs.inputs(np.arange(4))):
        assert ours.keys() == {"input_ids", "attention_mask"}
        assert (model.encode(ours, 100)[:, None] - expected).abs().max() < 1e-5
