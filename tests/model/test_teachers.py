"""Teachers within BERT as people serve them: heads, Dense modules, prompts, precisions; what is not BERT is refused."""

import json
import shutil

import pytest
import safetensors.torch
import torch
from teachers import NAMES, logits, sentence_teacher, sequence_classifier
from torch.nn import functional as F
from transformers import AutoTokenizer, BertModel

from elasticlm.errors import InputError
from elasticlm.model.configuration import MaxTokens, Prompts
from elasticlm.model.elastic_model import ElasticModel
from elasticlm.model.teacher import load_encoder, load_model, passage_encoder

TEXTS = ["how does ice form", "the river", "why is the mountain cold and the cave warm in a storm", "glacier"]
LONG = ["ice " * 100, "the sun and the moon", "rain", "wind " * 40]
PLAIN = ("", "Transformer", None)
MEAN = ("1_Pooling", "Pooling", {"pooling_mode_mean_tokens": True})
NORMALIZE = ("2_Normalize", "Normalize", None)
DENSE = {"in_features": 32, "out_features": 48, "bias": True,
         "activation_function": "torch.nn.modules.activation.Tanh"}  # fmt: skip


def edited(source, folder, **fields):
    """Copy a teacher with these fields in its config.json."""
    shutil.copytree(source, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | fields))
    return folder


def dense_teacher(tiny_bert, folder, *layers, suffix=".safetensors", dtype=torch.float32):
    """The tiny BERT with mean pooling and Dense modules of these settings."""
    modules = [(f"{i}_Dense", "Dense", settings) for i, settings in enumerate(layers, 2)]
    sentence_teacher(tiny_bert, folder, [PLAIN, MEAN, *modules, ("9_Normalize", "Normalize", None)])
    generator = torch.Generator().manual_seed(0)
    for path, _, settings in modules:
        shape = settings["out_features"], settings["in_features"]
        weights = {"linear.weight": torch.randn(shape, generator=generator)}
        if settings.get("bias", True):
            weights["linear.bias"] = torch.randn(shape[0], generator=generator)
        weights = {name: weight.to(dtype) for name, weight in weights.items()}
        if suffix == ".safetensors":
            safetensors.torch.save_file(weights, folder / path / "model.safetensors")
        else:
            torch.save(weights, folder / path / "pytorch_model.bin")
    return folder


def mean_hidden(folder):
    """Mean over the tokens of Hugging Face's hidden states, FloatTensor [texts, 32]."""
    inputs = AutoTokenizer.from_pretrained(folder)(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = load_encoder(folder)(**inputs).last_hidden_state
    mask = inputs["attention_mask"][..., None]
    return (hidden * mask).sum(1) / mask.sum(1)


# -- Heads -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("labels", [1, 3])
@pytest.mark.parametrize("seconds", [TEXTS[::-1], LONG, None], ids=["pairs", "long", "single"])
def test_a_sequence_classification_model_gives_hugging_faces_logits(tiny_bert, tmp_path, labels, seconds):
    folder = sequence_classifier(tiny_bert, tmp_path / "theirs", labels)
    expected = logits(folder, TEXTS, seconds)
    model = load_model(folder)
    assert (model.config.task, model.config.labels) == (("score", ()) if labels == 1 else ("classify", tuple(NAMES[3])))
    model.save_pretrained(tmp_path / "ours")
    for ours in (model, ElasticModel.from_pretrained(tmp_path / "ours"), model.cut(model.structures)):
        inputs = ours.tokenize_pairs(TEXTS, seconds)
        max_diff = (ours.encode(inputs, 100).view(4, -1) - expected).abs().max()
        assert max_diff < 1e-5, max_diff
    saved = json.loads((tmp_path / "ours/config.json").read_text())["head"]
    assert saved == {"kind": "pooler", "labels": NAMES[3] if labels == 3 else None, "activation": "tanh"}


def test_a_head_next_to_a_pooling_module_is_not_taken(tiny_bert, tmp_path):
    theirs = sequence_classifier(tiny_bert, tmp_path / "theirs", 1)
    folder = sentence_teacher(tiny_bert, tmp_path / "both", [PLAIN, MEAN])
    for name in ("config.json", "model.safetensors"):
        shutil.copy(theirs / name, folder / name)
    model = load_model(folder)
    assert (model.config.task, model.config.pooling) == ("embed", "mean")
    max_diff = (model.embed(TEXTS) - mean_hidden(folder)).abs().max()
    assert max_diff < 1e-5, max_diff


@pytest.mark.parametrize(
    ("labels", "problem"), [(3, "multi_label_classification"), (1, "multi_label_classification"), (2, "regression")]
)
def test_problems_that_are_no_score_and_no_choice_are_refused(tiny_bert, tmp_path, labels, problem):
    folder = sequence_classifier(tiny_bert, tmp_path / "theirs", labels, problem_type=problem)
    with pytest.raises(InputError, match=f"problem_type '{problem}' with {labels} labels is not supported"):
        load_model(folder)


def test_settings_of_an_encoder_do_not_go_with_a_head_or_an_artifact(tiny_bert, tiny_artifact, tmp_path):
    with pytest.raises(InputError, match="has a classification head, so --pooling does not apply"):
        load_model(sequence_classifier(tiny_bert, tmp_path / "theirs", 1), pooling="mean")
    with pytest.raises(InputError, match="is an elastic model and has its own settings: leave out --query-prompt"):
        load_model(tiny_artifact, query_prompt="query: ")


# -- Dense modules -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("suffix", "dtype"), [(".safetensors", torch.float32), (".bin", torch.float16)])
def test_dense_modules_run_after_pooling_and_before_normalisation(tiny_bert, tmp_path, suffix, dtype):
    last = {"in_features": 48, "out_features": 16, "bias": False,
            "activation_function": "torch.nn.modules.linear.Identity"}  # fmt: skip
    folder = dense_teacher(tiny_bert, tmp_path / "dense", DENSE, last, suffix=suffix, dtype=dtype)
    model = load_model(folder)
    first, second = model.dense
    assert (first.weight.dtype, tuple(first.weight.shape), second.bias) == (torch.float32, (48, 32), None)
    hidden = torch.tanh(F.linear(mean_hidden(folder), first.weight, first.bias))
    expected = F.normalize(F.linear(hidden, second.weight), dim=-1)
    model.save_pretrained(tmp_path / "ours")
    for ours in (model, ElasticModel.from_pretrained(tmp_path / "ours"), model.cut(model.structures)):
        max_diff = (ours.embed(TEXTS) - expected).abs().max()
        assert max_diff < 1e-5, max_diff
    assert model.config.vector_size == 16
    changed = model.cut(model.structures)
    with torch.no_grad():
        changed.dense[0].weight[0, 0] += 1
    assert changed.fingerprint() != model.fingerprint(), "the vectors differ"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (DENSE | {"activation_function": "mine.Swish9"}, "activation_function 'Swish9' is not supported"),
        (DENSE | {"in_features": 31}, "dense.0: takes in vectors of 31 numbers, expected 32"),
        (DENSE | {"out_features": 0}, "out_features is 0, expected 1 or more"),
    ],
)
def test_dense_modules_that_do_not_fit_are_refused(tiny_bert, tmp_path, settings, message):
    folder = dense_teacher(tiny_bert, tmp_path / "dense", settings)
    with pytest.raises(InputError, match=message):
        load_model(folder)


def test_dense_modules_without_weights_are_refused(tiny_bert, tmp_path):
    folder = dense_teacher(tiny_bert, tmp_path / "dense", DENSE)
    (folder / "2_Dense/model.safetensors").unlink()
    with pytest.raises(InputError, match="2_Dense: no weights"):
        load_model(folder)


# -- Other files of sentence-transformers ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        ([PLAIN, MEAN, ("2_LayerNorm", "LayerNorm", None)], "a LayerNorm module is not supported"),
        ([PLAIN, MEAN, NORMALIZE, ("3_Dense", "Dense", DENSE)], "not supported in this order"),
        ([PLAIN, ("1_Pooling", "Pooling", {"pooling_mode_max_tokens": True})], "'pooling_mode_max_tokens' is not"),
        ([PLAIN, ("1_Pooling", "Pooling", {"pooling_mode": "lasttoken"})], "pooling 'lasttoken' is not supported"),
    ],
)
def test_modules_that_are_not_known_are_refused_by_name(tiny_bert, tmp_path, modules, message):
    with pytest.raises(InputError, match=message):
        load_model(sentence_teacher(tiny_bert, tmp_path / "other", modules))


def test_the_encoder_may_be_in_a_folder_of_its_own(tiny_bert, tmp_path):
    folder = sentence_teacher(tiny_bert, tmp_path / "old", [("0_Transformer", "Transformer", None), MEAN, NORMALIZE])
    for file in [file for file in folder.iterdir() if file.is_file() and file.name != "modules.json"]:
        file.rename(folder / "0_Transformer" / file.name)
    assert torch.equal(load_model(folder).embed(TEXTS), load_model(tiny_bert).embed(TEXTS))
    assert load_model(folder).config.max_tokens.query == 48


def test_without_files_the_pooling_is_the_familys_and_a_warning_says_so(tiny_bert, tmp_path, capsys):
    shutil.copytree(tiny_bert, tmp_path / "bare", ignore=shutil.ignore_patterns("modules.json", "sentence_bert*"))
    model = load_model(tmp_path / "bare")
    said = capsys.readouterr().err
    assert "no file names the pooling; cls is assumed" in said
    assert "--pooling" in said
    assert (model.config.pooling, model.config.normalize) == ("cls", False)
    assert model.config.max_tokens == MaxTokens(64, 64, 64)
    mean = load_model(tmp_path / "bare", pooling="mean")
    assert capsys.readouterr().err == ""
    assert (F.normalize(mean.embed(TEXTS), dim=-1) - load_model(tiny_bert).embed(TEXTS)).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("settings", "prompts"),
    [
        ({"prompts": {"query": "query: ", "document": "passage: "}}, Prompts("query: ", "passage: ")),
        ({"prompts": {"query": "query: ", "passage": "p: ", "corpus": "c: "}}, Prompts("query: ", "p: ")),
        ({"prompts": {"both": "text: "}, "default_prompt_name": "both"}, Prompts("text: ", "text: ")),
        ({"prompts": {"query": "", "document": ""}, "default_prompt_name": None}, Prompts()),
        ({"prompts": {"s2p_query": "Instruct: "}}, Prompts()),
        ({}, Prompts()),
    ],
)
def test_prompts_are_those_that_sentence_transformers_takes(tiny_bert, tmp_path, capsys, settings, prompts):
    shutil.copytree(tiny_bert, tmp_path / "prompted")
    (tmp_path / "prompted/config_sentence_transformers.json").write_text(json.dumps(settings))
    assert load_model(tmp_path / "prompted").config.prompts == prompts
    assert ("none of its prompts (s2p_query) is used" in capsys.readouterr().err) == ("s2p_query" in str(settings))
    given = load_model(tmp_path / "prompted", query_prompt="q: ")
    assert given.config.prompts == Prompts("q: ", prompts.passage)


def test_a_mean_that_leaves_the_prompt_out_is_refused(tiny_bert, tmp_path):
    pooling = {"pooling_mode_mean_tokens": True, "include_prompt": False}
    folder = sentence_teacher(tiny_bert, tmp_path / "instruct", [PLAIN, ("1_Pooling", "Pooling", pooling)])
    assert load_model(folder).config.pooling == "mean", "without prompts it makes no difference"
    with pytest.raises(InputError, match="include_prompt false is not supported"):
        load_model(folder, query_prompt="query: ")
    assert load_model(folder, query_prompt="query: ", pooling="cls").config.pooling == "cls"
    (folder / "config_sentence_transformers.json").write_text(json.dumps({"prompts": {"query": "query: "}}))
    with pytest.raises(InputError, match="include_prompt false is not supported"):
        load_model(folder)
    assert load_model(folder, query_prompt="").config.prompts == Prompts(), "they can be switched off"


@pytest.mark.parametrize(
    ("file", "content", "match"),
    [
        ("config_sentence_transformers.json", "[]", "expected a JSON object"),
        ("config_sentence_transformers.json", '{"prompts": ["query: "]}', "expected names with their texts"),
        ("config_sentence_transformers.json", '{"prompts": {"query": null}}', "expected names with their texts"),
        ("sentence_bert_config.json", "3", "expected a JSON object"),
        ("config.json", "[]", "expected a JSON object"),
        ("1_Pooling/config.json", "[]", "expected a JSON object"),
        ("1_Pooling/config.json", "{", "not JSON"),
    ],
)
def test_settings_of_another_form_are_refused_with_their_file(tiny_bert, tmp_path, file, content, match):
    folder = shutil.copytree(tiny_bert, tmp_path / "odd")
    (folder / file).write_text(content)
    with pytest.raises(InputError, match=f"{file}: .*{match}"):
        load_model(folder)


def test_the_passages_of_an_artifact_are_encoded_with_the_settings_that_it_was_made_with(tiny_bert, tmp_path):
    given = {"pooling": "cls", "query_prompt": "why ", "passage_prompt": "the "}
    teacher = load_model(tiny_bert, **given)
    teacher.cut(teacher.structures).save_pretrained(tmp_path / "ours")
    model = ElasticModel.from_pretrained(tmp_path / "ours")
    encoder = passage_encoder(model, tiny_bert)
    assert encoder.fingerprint() == teacher.fingerprint() != load_model(tiny_bert).fingerprint()
    plain = load_model(tiny_bert, pooling="cls").embed([f"the {text}" for text in TEXTS], kind="query")
    assert (encoder.embed(TEXTS, kind="passage") - plain).abs().max() < 1e-5


# -- Tokenizers, precisions, files -------------------------------------------------------------------------------------


def test_texts_are_lower_cased_where_the_files_say_so(tiny_bert, tmp_path):
    shutil.copytree(tiny_bert, tmp_path / "cased")
    settings = json.loads((tmp_path / "cased/tokenizer_config.json").read_text()) | {"do_lower_case": False}
    (tmp_path / "cased/tokenizer_config.json").write_text(json.dumps(settings))
    upper = [text.upper() for text in TEXTS]
    cased = load_model(tmp_path / "cased")
    assert not torch.equal(cased.embed(TEXTS), cased.embed(upper))
    (tmp_path / "cased/sentence_bert_config.json").write_text('{"max_seq_length": 48, "do_lower_case": true}')
    lower = load_model(tmp_path / "cased")
    assert torch.equal(lower.embed(upper), lower.embed(TEXTS))
    assert torch.equal(lower.embed(TEXTS), cased.embed(TEXTS))
    lower.save_pretrained(tmp_path / "ours")
    assert torch.equal(ElasticModel.from_pretrained(tmp_path / "ours").embed(upper), lower.embed(TEXTS))
    assert lower.fingerprint() != cased.fingerprint()
    pair = lower.tokenize_pairs(["ICE"], ["Rain"])
    for name, tensor in cased.tokenize_pairs(["ice"], ["rain"]).items():
        assert torch.equal(pair[name], tensor), name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_checkpoints_in_half_precision_are_run_in_fp32(tiny_bert, tmp_path, dtype):
    shutil.copytree(tiny_bert, tmp_path / "half")
    BertModel.from_pretrained(tiny_bert, add_pooling_layer=False, dtype=dtype).save_pretrained(tmp_path / "half")
    model = load_model(tmp_path / "half")
    assert {weight.dtype for weight in model.state_dict().values()} == {torch.float32}
    halved = load_model(tiny_bert)
    halved.load_state_dict({name: weight.to(dtype).float() for name, weight in halved.state_dict().items()})
    assert torch.equal(model.embed(TEXTS), halved.embed(TEXTS))
    config = json.loads((tmp_path / "half/config.json").read_text())
    assert config["dtype"] == str(dtype).removeprefix("torch.")
    model.save_pretrained(tmp_path / "ours")
    assert torch.equal(ElasticModel.from_pretrained(tmp_path / "ours").embed(TEXTS), model.embed(TEXTS))


def test_checkpoints_in_several_files_are_loaded(tiny_bert, tmp_path):
    shutil.copytree(tiny_bert, tmp_path / "sharded", ignore=shutil.ignore_patterns("model.safetensors"))
    encoder = load_encoder(tiny_bert)
    encoder.save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    assert len(list((tmp_path / "sharded").glob("model-*.safetensors"))) > 1
    model = load_model(tmp_path / "sharded")
    assert torch.equal(model.embed(TEXTS), load_model(tiny_bert).embed(TEXTS))
    assert len(model.config.teacher.sha256) == 64


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"position_embedding_type": "alibi"}, "position_embedding_type 'alibi' is not supported"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type 'relative_key' is not supported"),
        ({"is_decoder": True}, "is_decoder True is not supported"),
        ({"auto_map": {"AutoConfig": "c.C", "AutoModel": "modeling_jina.JinaBertModel"}},
         r"code of its own \(modeling_jina.JinaBertModel\), which is not run"),
        ({"model_type": "nomic_bert", "auto_map": {"AutoModel": "nomic--m.NomicBertModel"}}, "nomic--m.NomicBertModel"),
        ({"model_type": "new"}, "model_type is 'new'; supported encoder families: "),
    ],
)  # fmt: skip
def test_what_changes_attention_is_refused_by_name(tiny_bert, tmp_path, fields, message):
    with pytest.raises(InputError, match=message):
        load_model(edited(tiny_bert, tmp_path / "other", **fields))


def test_layers_with_further_weights_are_refused_by_name(tiny_bert, tmp_path):
    shutil.copytree(tiny_bert, tmp_path / "gated")
    file = tmp_path / "gated/model.safetensors"
    weights = safetensors.torch.load_file(file)
    prefix = next(name for name in weights if "layer.0" in name).split("encoder.")[0]
    weights[f"{prefix}encoder.layer.0.mlp.gated_layers.weight"] = torch.zeros(64, 32)
    safetensors.torch.save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"layer\.0\.mlp\.gated_layers\.weight' is not part of a BertModel"):
        load_model(tmp_path / "gated")
