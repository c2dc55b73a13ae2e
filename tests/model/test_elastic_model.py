import json
import shutil

import pytest
import torch

from elasticlm import ElasticModel, ElasticStructure, InputError
from elasticlm.model.configuration import MaxTokens, Prompts
from elasticlm.model.teacher import load_encoder, load_model, passage_encoder

TEXTS = ["how does ice form", "the river", "why is the mountain cold and the cave warm in a storm", "glacier"]
EVERY_LEVEL = pytest.mark.parametrize("level", [100, 50, 10])


@pytest.fixture(scope="module")
def model(tiny_artifact):
    return ElasticModel.from_pretrained(tiny_artifact)


def reference(tiny_bert, random_scores, level, inputs, structures):
    """Hugging Face's own BertModel with the output weights of the dropped heads and neurons zeroed."""
    bert = load_encoder(tiny_bert)
    _, head_order, neuron_order = ElasticStructure.from_scores(*random_scores, [level])
    head_size = bert.config.hidden_size // bert.config.num_attention_heads
    with torch.no_grad():
        for i, layer in enumerate(bert.encoder.layer):
            for head in head_order[i, structures[level].heads[i] :]:
                layer.attention.output.dense.weight[:, head * head_size : (head + 1) * head_size] = 0
            layer.output.dense.weight[:, neuron_order[i, structures[level].neurons[i] :]] = 0
        return bert(**inputs).last_hidden_state


@EVERY_LEVEL
def test_the_same_submodel_three_ways(model, tiny_bert, random_scores, level):
    inputs = model.tokenize_pairs(TEXTS, TEXTS[::-1])
    assert inputs["token_type_ids"].any()
    sliced = model.encoder(**inputs, structure=model.structures[level])
    alone = model.cut(ElasticStructure({level: model.structures[level]}))
    exported = alone.encoder(**inputs, structure=alone.structures[level])
    zeroed = reference(tiny_bert, random_scores, level, inputs, model.structures)
    real = inputs["attention_mask"].bool()
    assert (sliced - exported)[real].abs().max() < 1e-5
    assert (sliced - zeroed)[real].abs().max() < 1e-5


def test_a_layer_may_keep_no_heads_and_no_neurons(model):
    assert 0 in model.structures[10].heads
    assert 0 in model.structures[10].neurons
    assert model.embed(TEXTS, level=10).isfinite().all()


def test_smaller_levels_are_views_of_the_largest(model):
    """Running any level reads the largest level's storage: no weight is copied."""
    taken = []
    original = torch.nn.functional.linear

    def spy(x, weight, bias=None):
        taken.append(weight.data_ptr())
        return original(x, weight, bias)

    torch.nn.functional.linear = spy
    try:
        model.embed(TEXTS, level=10)
    finally:
        torch.nn.functional.linear = original
    owned = {p.data_ptr() for p in model.parameters()}
    assert taken
    assert set(taken) <= owned
    assert sum(p.numel() for p in model.encoder.layers.parameters()) == sum(
        p.numel() for p in model.cut(ElasticStructure({100: model.structures[100]})).encoder.layers.parameters()
    )


def test_level_100_is_the_teacher(model, tiny_bert):
    assert (model.embed(TEXTS) - load_model(tiny_bert).embed(TEXTS)).abs().max() < 1e-5


def test_the_teacher_embeds_as_sentence_transformers_does(tiny_bert):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    theirs = torch.tensor(sentence_transformers.SentenceTransformer(str(tiny_bert), device="cpu").encode(TEXTS))
    assert (load_model(tiny_bert).embed(TEXTS) - theirs).abs().max() < 1e-5


def test_embeddings_keep_the_order_of_the_texts(model):
    together = model.embed(TEXTS, level=50, batch_size=2)
    alone = torch.cat([model.embed([text], level=50) for text in TEXTS])
    assert (together - alone).abs().max() < 1e-5


@pytest.mark.parametrize("most", [1, 60, 100])
def test_large_batches_run_in_parts_and_answer_the_same(model, monkeypatch, most):
    inputs = model.tokenize([" ".join(["ice"] * (1 + 7 * i % 23)) for i in range(20)])
    expected, shapes, hidden = model.encode(inputs, 50), [], model.backend.hidden
    monkeypatch.setattr("elasticlm.model.elastic_model.CHUNK_TOKENS", most)
    monkeypatch.setattr(
        model.backend,
        "hidden",
        lambda part, level: shapes.append(tuple(part["input_ids"].shape)) or hidden(part, level),
    )
    assert (model.encode(inputs, 50) - expected).abs().max() < 1e-5
    assert sum(rows for rows, _ in shapes) == 20
    assert all(rows * tokens <= most or rows == 1 for rows, tokens in shapes)


def test_texts_over_the_limit_are_truncated_and_said_to_be(model):
    inputs = model.tokenize(["ice " * 100, "ice"])
    assert inputs["input_ids"].shape == (2, 48)
    assert inputs.cut == [True, False]


def test_prompts_stand_before_the_text(model):
    prompted = load_prompted(model, Prompts("how ", ""))
    assert (prompted.embed(["ice"]) - model.embed(["how ice"])).abs().max() < 1e-5
    assert (prompted.embed(["ice"], kind="passage") - model.embed(["ice"])).abs().max() < 1e-5


def load_prompted(model, prompts):
    prompted = model.cut(model.structures)
    prompted.config.prompts = prompts
    return prompted


def test_artifacts_survive_a_round_trip(model, tmp_path):
    model.save_pretrained(tmp_path / "copy")
    copy = ElasticModel.from_pretrained(tmp_path / "copy")
    assert copy.fingerprint() == model.fingerprint()
    assert torch.equal(copy.embed(TEXTS, level=10), model.embed(TEXTS, level=10))
    with pytest.raises(InputError, match="exists already"):
        model.save_pretrained(tmp_path / "copy")


def test_the_fingerprint_follows_whatever_moves_a_vector(model):
    changed = {model.fingerprint()}
    edits = {"pooling": "cls", "normalize": False, "prompts": Prompts("", "p: "), "max_tokens": MaxTokens(48, 9, 64)}
    for name, value in edits.items():
        other = model.cut(model.structures)
        setattr(other.config, name, value)
        changed.add(other.fingerprint())
    weights = model.cut(model.structures)
    with torch.no_grad():
        weights.encoder.embeddings.norm.bias += 1e-3
    changed.add(weights.fingerprint())
    assert len(changed) == 6
    assert all(value.startswith("v2:") for value in changed)


def test_the_fingerprint_of_passages_does_not_follow_what_concerns_queries_alone(model):
    other = model.cut(model.structures)
    other.config.prompts, other.config.max_tokens = Prompts("q: ", ""), MaxTokens(9, 48, 9)
    assert other.fingerprint() == model.fingerprint()


def test_passages_are_encoded_by_the_teacher_that_was_pruned(model, tiny_bert, tmp_path):
    assert passage_encoder(model).fingerprint() == model.config.passages.fingerprint
    shutil.copytree(tiny_bert, tmp_path / "other")
    (tmp_path / "other/sentence_bert_config.json").write_text('{"max_seq_length": 32}')
    with pytest.raises(InputError, match="not the teacher"):
        passage_encoder(model, tmp_path / "other")


def edited_config(source, target, **fields):
    shutil.copytree(source, target)
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(config | fields))
    return target


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"levels": {"0": {"heads": [1, 1, 1], "neurons": [1, 1, 1]}}}, "expected a percentage"),
        ({"levels": {"50": {"heads": [1, 1], "neurons": [1, 1]}}}, "2 layers"),
        ({"levels": {"50": {"heads": [5, 1, 1], "neurons": [1, 1, 1]}}}, "more heads or neurons than the teacher"),
        ({"levels": {"50": {"heads": [1, 1, 1]}}}, "levels: expected"),
        ({"levels": {}}, "at least one"),
        ({"format_version": 3}, "format_version is 3, this release reads 1 and 2"),
        ({"model_type": "bert"}, "model_type is 'bert'"),
        ({"task": "dance"}, "task is 'dance'"),
        ({"task": "classify"}, "head: a model with task 'classify' has a head"),
        ({"task": "classify", "head": {"kind": "linear"}}, "head.labels"),
        ({"head": {"kind": "linear"}}, "has no head"),
        ({"head": {"kind": "conv"}}, "head.kind is 'conv'"),
        ({"passages": {"encoder": "largest", "index": 1}}, "passages: unknown field 'index'"),
        ({"prompts": ["query: "]}, "prompts: expected an object"),
        ({"levels": {"100": {"weights": "teacher"}}}, "only level 100 can be the teacher"),
        ({"family": "t5"}, "supported encoder families: bert"),
        ({"pooling": "max"}, "pooling is 'max'"),
        ({"max_tokens": {"query": 4000}}, "max_tokens.query is 4000"),
        ({"hidden_size": "wide"}, "not a valid configuration"),
    ],
)
def test_broken_configurations_are_refused_in_one_line(tiny_artifact, tmp_path, fields, message):
    folder = edited_config(tiny_artifact, tmp_path / "broken", **fields)
    with pytest.raises(InputError, match=message) as refusal:
        ElasticModel.from_pretrained(folder)
    assert "config.json" in str(refusal.value)


def test_a_truncated_weight_file_is_refused(tiny_artifact, tmp_path):
    shutil.copytree(tiny_artifact, tmp_path / "cut")
    file = tmp_path / "cut/model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"model\.safetensors: truncated"):
        ElasticModel.from_pretrained(tmp_path / "cut")


def test_weights_of_another_structure_are_refused(tiny_artifact, tmp_path):
    levels = {"50": {"heads": [1, 1, 1], "neurons": [1, 1, 1]}}
    folder = edited_config(tiny_artifact, tmp_path / "other", levels=levels)
    with pytest.raises(InputError, match="has shape"):
        ElasticModel.from_pretrained(folder)


def test_teachers_that_are_no_bert_are_refused_by_name(tiny_bert, tmp_path):
    folder = edited_config(tiny_bert, tmp_path / "gpt2", model_type="gpt2")
    with pytest.raises(InputError, match="model_type is 'gpt2'"):
        load_model(folder)


def test_names_that_are_nowhere_are_refused():
    with pytest.raises(InputError, match="no such folder"):
        load_model("out/there-is-no-such-model")


def test_a_level_that_does_not_exist_is_refused(model):
    with pytest.raises(InputError, match="level 30 is not among the levels 100, 50, 10"):
        model.embed(TEXTS, level=30)


@pytest.mark.parametrize(("task", "labels"), [("score", None), ("classify", ["no", "yes"])])
def test_score_and_classify_answer_from_cls(model, tmp_path, task, labels):
    config = json.loads(json.dumps(model.config.to_dict())) | {
        "task": task,
        "head": {"kind": "linear", "labels": labels},
    }
    config.pop("model_type")
    headed = ElasticModel(type(model.config)(**config), model.tokenizer)
    headed.save_pretrained(tmp_path / task)
    loaded = ElasticModel.from_pretrained(tmp_path / task)
    if task == "score":
        scores = loaded.score("how does ice form", TEXTS, level=50)
        inputs = loaded.tokenize_pairs(["how does ice form"] * 4, TEXTS)
        hidden = loaded.encoder(**inputs, structure=loaded.structures[50])
        assert (scores - (hidden[:, 0] @ loaded.head.weight[0] + loaded.head.bias[0])).abs().max() < 1e-5
    else:
        assert loaded.classify(TEXTS, TEXTS, level=10).shape == (4, 2)
        assert loaded.classify(TEXTS, level=10).shape == (4, 2)
    with pytest.raises(InputError, match="task"):
        loaded.embed(TEXTS)
