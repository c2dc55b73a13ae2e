"""The systems of the paper's comparison: each one's own mechanism, and a run of each from the command line."""

import json
import shutil

import numpy as np
import pytest
import torch
from random_texts import make_texts
from torch import nn
from transformers import BertModel

from elasticlm.errors import InputError
from elasticlm.model.configuration import Passages
from elasticlm.model.elastic_model import ElasticModel
from elasticlm.model.structure import WHOLE, ElasticStructure, Structure
from elasticlm.model.teacher import load_model
from elasticlm.trainer import baseline, distil, evaluate, finetune, prune
from elasticlm.trainer.baselines import BASELINES
from elasticlm.trainer.baselines.condenser import CondenserHead
from elasticlm.trainer.baselines.dynabert import DynaBert, submodel
from elasticlm.trainer.baselines.early_exit import EarlyExit, exit_logits, exits_by_confidence, with_exits
from elasticlm.trainer.baselines.kd import KnowledgeDistillation
from elasticlm.trainer.baselines.masked_lm import LmDistillation, LmHead, load_head
from elasticlm.trainer.baselines.minilm import MiniLm
from elasticlm.trainer.baselines.moebert import Experts, MoeBert, dealt, with_experts
from elasticlm.trainer.baselines.simtinybert import SimTinyBert
from elasticlm.trainer.baselines.states import alone, leave_out_empty_layers, states_of
from elasticlm.trainer.baselines.tinybert import layer_losses, projection, teacher_states
from elasticlm.trainer.layers import fresh_student, keep_layers, matched_layers
from elasticlm.trainer.objectives.classify import Classify
from elasticlm.trainer.objectives.fine_tuning import match_losses, soft_losses
from elasticlm.trainer.objectives.relations import PARTS
from elasticlm.trainer.training_texts import TokenizedTexts

SHORT = ["--max-steps", "2", "--batch-size", "8", "--dev-examples", "8", "--precision", "fp32", "--threads", "1"]


@pytest.fixture(scope="module")
def teacher(tiny_bert):
    return load_model(str(tiny_bert))


@pytest.fixture(scope="module")
def inputs(teacher):
    """A padded batch."""
    return dict(teacher.tokenize(make_texts(4, seed=5, shortest=3, longest=9)))


@pytest.fixture(scope="module")
def glue(tmp_path_factory):
    """A set of pairs, whose label is told by the first word."""
    folder = tmp_path_factory.mktemp("glue") / "classes"
    folder.mkdir()
    texts = make_texts(160, seed=3, shortest=4, longest=8)
    for split, part in (("train", texts[:120]), ("dev", texts[120:])):
        rows = [{"sentence1": ("glacier " if i // 2 % 2 else "sun ") + part[i], "sentence2": part[i + 1],
                 "label": i // 2 % 2} for i in range(0, len(part), 2)]  # fmt: skip
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    return folder


@pytest.fixture(scope="module")
def pruned(tiny_bert, text_file, tmp_path_factory):
    """The tiny BERT with a trained level 100, units in order of their scores by masked words."""
    folder = tmp_path_factory.mktemp("pruned") / "model"
    prune.main(["--teacher", str(tiny_bert), "--data", f"text:{text_file}", "--levels", "100,50", "--top", "shared",
                "--score-loss", "mlm", "--max-examples", "32", "--output", str(folder)])  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def fine_tuned(pruned, glue, beir, tmp_path_factory):
    """Whole teachers, fine-tuned as a classifier and as a reranker, by task."""
    folder = tmp_path_factory.mktemp("fine-tuned")
    for task, data in (("classify", f"glue:{glue}"), ("rerank", f"beir:{beir}")):
        finetune.main(["--task", task, "--model", str(pruned), "--data", data, *SHORT, "--output", str(folder / task)])
    return {task: folder / task for task in ("classify", "rerank")}


def run(name, output, *options, **paths):
    """Train a baseline for two steps."""
    given = [word for option, value in paths.items() for word in (f"--{option}", str(value))]
    baseline.main([name, *given, *options, *SHORT, "--output", str(output)])
    return output


# -- Structures by layers and width ------------------------------------------------------------------------------------


def test_layers_are_kept_with_their_weights_and_the_others_are_not_there(teacher, inputs):
    model = keep_layers(teacher, [0, 2])
    assert model.structures[WHOLE].layers == 2
    for new, old in enumerate((0, 2)):
        theirs = teacher.encoder.layers[old].state_dict()
        assert all(torch.equal(weight, theirs[name]) for name, weight in model.encoder.layers[new].state_dict().items())
    by_hand = teacher.encoder.embeddings(inputs["input_ids"], inputs.get("token_type_ids"))
    context = teacher.encoder.family.context(teacher.encoder, by_hand.shape[1],
                                             inputs["attention_mask"][:, None, None, :].bool())  # fmt: skip
    for layer in (teacher.encoder.layers[0], teacher.encoder.layers[2]):
        by_hand = layer(by_hand, context, heads=4, neurons=32)
    assert torch.equal(model.hidden(**inputs, level=WHOLE), by_hand)


def test_a_narrow_student_has_the_teachers_heads_and_bert_like_weights(teacher, tiny_bert, text_file, tmp_path):
    prune.main(["--teacher", str(tiny_bert), "--data", f"text:{text_file}", "--layers", "2", "--width", "16",
                "--output", str(tmp_path / "narrow")])  # fmt: skip
    model = ElasticModel.from_pretrained(tmp_path / "narrow")
    assert (model.config.hidden_size, model.config.intermediate_size, model.config.num_attention_heads) == (16, 16, 4)
    assert model.structures == {WHOLE: Structure((4, 4), (16, 16))}
    assert model.config.passages.encoder == "largest"
    deviation = model.encoder.words.weight[1:].std().item()
    assert deviation == pytest.approx(model.config.initializer_range, rel=0.05)
    assert not any(layer.attention.query.bias.any() for layer in model.encoder.layers)
    prune.main(["--teacher", str(tiny_bert), "--data", f"text:{text_file}", "--layers", "2", "--output",
                str(tmp_path / "shallow")])  # fmt: skip
    shallow = ElasticModel.from_pretrained(tmp_path / "shallow")
    last = teacher.encoder.layers[-1].state_dict()
    assert all(torch.equal(weight, last[name]) for name, weight in shallow.encoder.layers[-1].state_dict().items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--layers", "9"], "--layers 9: the teacher has 3"),
        (["--width", "17"], "--width 17: expected a multiple of 4"),
        (["--width", "64"], "at most 32"),
        (["--layers", "2", "--levels", "100,50", "--top", "teacher"], "--top teacher: level 100 cannot be the teacher"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(tiny_bert, text_file, tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        prune.main(
            ["--teacher", str(tiny_bert), "--data", f"text:{text_file}", *options, "--output", str(tmp_path / "o")]
        )


# -- Each system's mechanism -------------------------------------------------------------------------------------------


def test_attention_logits_are_those_of_hugging_face(teacher, tiny_bert, inputs):
    theirs = BertModel.from_pretrained(tiny_bert, attn_implementation="eager").eval()
    with torch.no_grad():
        expected = theirs(**inputs, output_attentions=True, output_hidden_states=True)
        found = states_of(teacher, inputs, WHOLE, attention=True)
    real = inputs["attention_mask"].bool()
    for ours, hidden in zip(found.hidden, expected.hidden_states, strict=True):
        assert torch.allclose(ours[real], hidden[real], atol=1e-5)
    padding = ~real[:, None, None, :]
    for logits, attention in zip(found.attention, expected.attentions, strict=True):
        assert torch.allclose(logits.masked_fill(padding, -1e9).softmax(-1), attention, atol=1e-5)


def test_tinybert_matches_embeddings_hidden_states_and_attention_each(teacher, inputs):
    """The loss of a student against itself is 0; a change of one kind of state alone is seen."""
    mask = inputs["attention_mask"]
    with torch.no_grad():
        states = states_of(teacher, inputs, WHOLE, attention=True)
    identity = nn.Identity()
    assert layer_losses(states, states, mask, identity).abs().max() == 0
    for place in range(4):
        hidden = [state + 0.1 * (i == place) for i, state in enumerate(states.hidden)]
        changed = type(states)(tuple(hidden), states.attention)
        assert layer_losses(changed, states, mask, identity).tolist() == pytest.approx([0.01] * 4, abs=1e-6), place
    for place in range(3):
        attention = [logits + 0.1 * (i == place) for i, logits in enumerate(states.attention)]
        changed = type(states)(states.hidden, tuple(attention))
        assert layer_losses(changed, states, mask, identity).tolist() == pytest.approx([0.01] * 4, abs=1e-6), place
    student = keep_layers(teacher, matched_layers(2, 3))
    theirs = teacher_states(teacher, inputs, student)
    assert [len(theirs.hidden), len(theirs.attention)] == [3, 2]
    assert torch.equal(theirs.hidden[1], states.hidden[2]), "of 3 layers, the first of 2 matches the second"


def test_tinybert_projects_a_narrow_student(teacher, inputs):
    student = fresh_student(teacher, layers=2, width=16, seed=0)
    project = projection(student, teacher, seed=0)
    assert project.weight.shape == (32, 16)
    losses = layer_losses(states_of(student, inputs, WHOLE, attention=True), teacher_states(teacher, inputs, student),
                          inputs["attention_mask"], project)  # fmt: skip
    losses.sum().backward()
    assert project.weight.grad.any()
    assert student.encoder.layers[0].attention.query.weight.grad.any()


def test_minilm_takes_the_students_own_last_layer_without_a_further_block(teacher, text_file, processes, inputs):
    """A student that is the teacher has no loss; the block of ElasticLM, before training, has."""
    texts = TokenizedTexts.of(teacher, text_file.read_text().splitlines()[:8], "passage")
    objective = MiniLm(teacher, teacher, texts, relation_heads=8, scale="sqrt", processes=processes, chunk_size=8)
    batch = next(iter(objective.batches(np.arange(4), 0)))
    assert not list(objective.extra.parameters())
    assert objective.losses(batch, WHOLE).abs().max() < 1e-6
    changed = keep_layers(teacher, range(3))
    with torch.no_grad():
        for name in PARTS:
            getattr(changed.encoder.layers[-1].attention, name).weight.mul_(1.5)
    objective.model = changed
    assert objective.losses(batch, WHOLE).min() > 1e-3


def test_dynabert_switches_width_and_depth(teacher, inputs):
    """A submodel of half the width in half of the layers is the network without the others, layer norms and all."""
    whole = Structure((4,) * 3, (32,) * 3)
    assert submodel(whole, 0.5, 1.0) == Structure((2,) * 3, (16,) * 3)
    kept = submodel(whole, 0.25, 0.5)
    assert kept == Structure((0, 3, 0), (0, 24, 0))
    model = teacher.cut(ElasticStructure({100: whole, 25: kept}))
    leave_out_empty_layers(model)
    small = alone(model, 25)
    assert small.structures == {25: Structure((3,), (24,))}
    assert torch.allclose(model.hidden(**inputs, level=25), small.hidden(**inputs, level=25), atol=1e-6)
    assert torch.allclose(model.hidden(**inputs, level=100), teacher.hidden(**inputs, level=100), atol=1e-6)


def test_moebert_routes_each_word_to_one_expert(teacher, inputs):
    """A token's output is that of its word's expert; one expert changes the tokens of its own words alone."""
    model = with_experts(teacher, 50, 4, seed=0)
    experts = [module for module in model.modules() if isinstance(module, Experts)]
    assert len(experts) == 3
    assert [len(module.experts) for module in experts] == [4] * 3
    assert experts[0].experts[0].up.out_features == 8, "a quarter of the neurons"
    with torch.no_grad():
        model.hidden(**inputs, level=50)
        routes = experts[0]._routes.of_tokens
        assert len(routes.unique()) == 4
        x = torch.randn(*routes.shape, 32)
        before = experts[0](x, 8)
        experts[0].experts[2].down.bias.add_(1.0)
        changed = (experts[0](x, 8) - before).abs().amax(-1) > 0.5
    assert torch.equal(changed, routes == 2)
    shared = dealt(32, 8, 4)
    assert all(neurons[:5] == [0, 1, 2, 3, 4] for neurons in shared), "the most important ones are in all experts"
    assert len({neuron for neurons in shared for neuron in neurons[5:]}) == 12, "the others are dealt out"


def test_exits_are_taken_where_the_classifier_is_sure(teacher, inputs):
    """In one pass, each exit gives what the layers before it give alone; a text takes the first that is sure."""
    model = teacher.with_head("classify", ["a", "b"], seed=0)
    exits = with_exits(model, [1, 3])
    assert list(exits.levels) == [100, 33.33]
    heads = [exits.head, exits.head]
    logits = exit_logits(exits, heads, [1, 3], inputs)
    for number, level in enumerate((33.33, 100)):
        assert torch.allclose(logits[number], alone(exits, level)(**inputs, level=level), atol=1e-5)
    unsure, sure = torch.tensor([0.0, 0.0]), torch.tensor([9.0, 0.0])
    logits = torch.stack([torch.stack([unsure, sure]), torch.stack([unsure, unsure])])
    assert exits_by_confidence(logits, 0.1).tolist() == [1, 0]
    assert exits_by_confidence(logits, 1.0).tolist() == [0, 0]


def test_condenser_reads_first_tokens_late_and_others_from_the_middle(teacher, inputs):
    """What the head predicts of a token changes with the last state of [CLS], not with its own."""
    head = CondenserHead(teacher)
    states = states_of(teacher, inputs, WHOLE).hidden
    condensed, _ = head._condensed(teacher, inputs)
    assert torch.equal(condensed[:, 0], states[3][:, 0])
    assert torch.equal(condensed[:, 1:], states[2][:, 1:])


def test_masked_words_are_drawn_anew_each_step_and_alike_for_a_resumed_one(tiny_bert, text_file, processes):
    teacher = load_model(str(tiny_bert))
    texts = TokenizedTexts.of(teacher, text_file.read_text().splitlines(), "passage")
    objective = LmHead(teacher, texts, source=str(tiny_bert), processes=processes, chunk_size=8, seed=0)
    first, again, later = (next(iter(objective.batches(np.arange(8), step))) for step in (0, 0, 1))
    assert torch.equal(first.inputs["input_ids"], again.inputs["input_ids"])
    assert not torch.equal(first.masked, later.masked)
    special = torch.isin(first.inputs["input_ids"][~first.masked], torch.tensor([2, 3]))
    assert special.sum() == 16, "[CLS] and [SEP] are never masked"
    values = torch.arange(len(first.words), dtype=torch.float)
    by_hand = [values[first.texts == i].mean().nan_to_num().item() for i in range(8)]
    assert first.per_text(values).tolist() == pytest.approx(by_hand)


# -- What each of them minimises ---------------------------------------------------------------------------------------


@pytest.fixture
def task(tiny_bert, processes):
    """Classification of four labelled texts by a model with a fresh head."""
    model = load_model(str(tiny_bert)).with_head("classify", ["0", "1"], seed=0)
    texts = TokenizedTexts.of_pairs(model, [(text, None) for text in make_texts(4, seed=9)])
    return Classify(model, texts, torch.tensor([0, 1, 1, 0]), teacher=None, processes=processes, chunk_size=4)


def fine_tuned_like(task, factor=1.0):
    """A copy of the task's model whose head is scaled."""
    whole = {WHOLE: task.model.structures[WHOLE]}
    copied = task.model.cut(ElasticStructure(whole))
    with torch.no_grad():
        copied.head.weight.mul_(factor)
    return copied


def first_losses(objective, level=WHOLE):
    batch = next(iter(objective.batches(np.arange(4), 0)))
    return batch, objective.losses(batch, level).detach()


def by_labels(task):
    """The task's own loss of its four texts."""
    return first_losses(task)[1]


def test_kd_is_half_labels_and_half_softened_logits(task):
    hard = by_labels(task)
    _, same = first_losses(KnowledgeDistillation(task, fine_tuned_like(task)))
    assert torch.allclose(same, 0.5 * hard, atol=1e-6), "a student that is its teacher has the labels' loss alone"
    _, apart = first_losses(KnowledgeDistillation(task, fine_tuned_like(task, 30.0)))
    outputs, theirs = (model(**task.texts.inputs(np.arange(4)), level=WHOLE).detach() / 2
                       for model in (task.model, fine_tuned_like(task, 30.0)))  # fmt: skip
    p, q = theirs.softmax(-1), outputs.softmax(-1)
    assert torch.allclose(apart, 0.5 * hard + 0.5 * 4 * (p * (p / q).log()).sum(-1), atol=1e-5)


def test_dynabert_matches_logits_and_hidden_states_without_labels(task):
    teacher = fine_tuned_like(task)
    objective = DynaBert(task, teacher, levels=[100, 50], depths=[1.0, 1.0])
    assert first_losses(objective)[1].abs().max() < 1e-9, "the teacher itself, whatever the labels"
    _, logits = first_losses(DynaBert(task, fine_tuned_like(task, 30.0), levels=[100, 50], depths=[1.0, 1.0]))
    assert logits.min() > 1e-4
    batch, small = first_losses(objective, 50)
    hidden = states_of(objective.model, batch.of_task.inputs, 50).hidden
    mask = batch.of_task.inputs["attention_mask"]
    apart = sum(((ours - theirs) ** 2).mean(-1).mul(mask).sum(1) / mask.sum(1)
                for ours, theirs in zip(hidden, batch.hidden, strict=True))  # fmt: skip
    soft = soft_losses(objective.model.finish(hidden[-1], mask), batch.outputs)
    assert torch.allclose(small, (soft + 0.1 * apart).detach(), atol=1e-5)


def test_moebert_is_labels_and_five_times_logits_and_states(task):
    hard = by_labels(task)
    teacher = fine_tuned_like(task)
    objective = MoeBert(task, teacher, level=50, experts=2, seed=0)
    batch, found = first_losses(objective, 50)
    mask = batch.of_task.inputs["attention_mask"]
    hidden = states_of(objective.model, batch.of_task.inputs, 50).hidden
    outputs = objective.model.finish(hidden[-1], mask)
    ours, theirs = outputs.softmax(-1), batch.outputs.softmax(-1)
    both = ((theirs * (theirs / ours).log()).sum(-1) + (ours * (ours / theirs).log()).sum(-1)) / 2
    apart = sum(((mine - his) ** 2).mean(-1).mul(mask).sum(1) / mask.sum(1)
                for mine, his in zip(hidden, batch.hidden, strict=True)) / 4  # fmt: skip
    assert apart.min() > 1e-4, "one expert is not the whole network"
    own = match_losses(outputs, torch.tensor([0, 1, 1, 0]))
    assert torch.allclose(found, (own + 5 * (both + apart)).detach(), atol=1e-5)
    assert not torch.allclose(hard, own)


def test_simtinybert_adds_states_soft_and_hard_labels(task):
    hard = by_labels(task)
    _, same = first_losses(SimTinyBert(task, fine_tuned_like(task), seed=0))
    assert torch.allclose(same, hard, atol=1e-5), "a student that is its teacher has the labels' loss alone"
    _, logits = first_losses(SimTinyBert(task, fine_tuned_like(task, 30.0), seed=0))
    assert (logits - hard).min() > 1e-4
    other = fine_tuned_like(task)
    with torch.no_grad():
        other.encoder.layers[1].attention.query.weight.mul_(1.5)
    _, states = first_losses(SimTinyBert(task, other, seed=0))
    assert (states - hard).min() > 1e-3


def test_lm_distillation_matches_predictions_at_masked_words(teacher, tiny_bert, text_file, processes):
    texts = TokenizedTexts.of(teacher, text_file.read_text().splitlines()[:8], "passage")
    options = {"head": load_head(teacher, str(tiny_bert)), "processes": processes, "chunk_size": 8, "seed": 0}
    assert first_losses(LmDistillation(teacher, teacher, texts, **options))[1].abs().max() < 1e-6
    student = keep_layers(teacher, [2])
    batch, found = first_losses(LmDistillation(student, teacher, texts, **options))
    assert batch.masked[:4].sum() == len(batch.words)
    assert found[batch.masked.any(1)].min() > 1e-3


def test_confidence_needs_classes(tiny_bert, processes):
    model = load_model(str(tiny_bert)).with_head("classify", ["value"], seed=0)
    texts = TokenizedTexts.of_pairs(model, [(text, None) for text in make_texts(4, seed=9)])
    task = Classify(model, texts, torch.rand(4), teacher=None, processes=processes, chunk_size=4)
    with pytest.raises(InputError, match="needs classes"):
        EarlyExit(task, exits=[1, 3], measured=[("glue:nowhere", "dev")])


def test_exits_have_classifiers_of_their_own(task):
    objective = EarlyExit(task, exits=[1, 3])
    batch = next(iter(objective.batches(np.arange(4), 0)))
    before = [objective.losses(batch, level).detach() for level in (100, 33.33)]
    with torch.no_grad():
        objective._head(33.33).weight.mul_(-3.0)
    after = [objective.losses(batch, level).detach() for level in (100, 33.33)]
    assert torch.equal(before[0], after[0])
    assert not torch.allclose(before[1], after[1])


# -- Each of them from the command line --------------------------------------------------------------------------------


def test_kd_matches_softened_logits_and_labels(pruned, fine_tuned, glue, beir, tmp_path):
    for task, data in (("classify", f"glue:{glue}"), ("rerank", f"beir:{beir}")):
        folder = run("kd", tmp_path / task, task=task, model=pruned, teacher=fine_tuned[task], data=data)
        assert ElasticModel.from_pretrained(folder).config.task == {"classify": "classify", "rerank": "score"}[task]


def test_dynabert_writes_a_network_for_each_level(pruned, fine_tuned, glue, tmp_path):
    folder = run("dynabert", tmp_path / "out", "--levels", "100,50,25", "--depths", "1,1,0.67", task="classify",
                 model=pruned, teacher=fine_tuned["classify"], data=f"glue:{glue}")  # fmt: skip
    layers = {name: ElasticModel.from_pretrained(folder / name).structures for name in ("100", "50", "25")}
    assert layers == {
        "100": {100: Structure((4,) * 3, (32,) * 3)}, "50": {50: Structure((2,) * 3, (16,) * 3)},
        "25": {25: Structure((2, 2), (12, 12))},
    }  # fmt: skip
    evaluate.main(["--model", str(folder / "25"), "--teacher", str(fine_tuned["classify"]), "--data", f"glue:{glue}",
                   "--split", "dev", "--output", str(tmp_path / "dev.json")])  # fmt: skip
    assert "25" in json.loads((tmp_path / "dev.json").read_text())["metrics"]


def test_moebert_is_measured_where_it_was_trained(pruned, fine_tuned, glue, tmp_path):
    folder = run("moebert", tmp_path / "out", "--evaluate", "dev", task="classify", model=pruned,
                 teacher=fine_tuned["classify"], data=f"glue:{glue}")  # fmt: skip
    found = json.loads((folder / "dev.json").read_text())
    assert {"teacher", "50"} <= set(found["metrics"])
    assert len(found["per_query"]["50"]["accuracy"]) == 20


def test_early_exits_become_encoders_of_fewer_layers(pruned, glue, beir, tmp_path):
    folder = run("early-exit", tmp_path / "classifier", "--exits", "1,3", "--evaluate", "dev", task="classify",
                 model=pruned, data=f"glue:{glue}")  # fmt: skip
    models = {name: ElasticModel.from_pretrained(folder / name) for name in ("1", "3")}
    assert [model.config.num_hidden_layers for model in models.values()] == [1, 3]
    assert not torch.equal(models["1"].head.weight, models["3"].head.weight), "each exit has its own classifier"
    found = json.loads((folder / "dev.json").read_text())
    layers = list(found["layers"].values())
    assert layers == sorted(layers, reverse=True), "the lower the entropy asked for, the later the exit"
    assert (layers[0], layers[-1]) == (3.0, 1.0)
    folder = run("early-exit", tmp_path / "retriever", "--exits", "1,3", task="retrieve", model=pruned,
                 data=f"beir:{beir}")  # fmt: skip
    first, last = (ElasticModel.from_pretrained(folder / name) for name in ("1", "3"))
    assert last.config.passages == Passages("largest", last.fingerprint())
    assert first.config.passages == Passages("teacher", last.fingerprint())
    evaluate.main(["--model", str(folder / "1"), "--teacher", str(folder / "3"), "--data", f"beir:{beir}", "--split",
                   "train", "--output", str(tmp_path / "first.json")])  # fmt: skip
    found = json.loads((tmp_path / "first.json").read_text())
    assert found["passages"]["fingerprint"] == last.fingerprint(), "passages are encoded by all layers"


def test_simtinybert_takes_a_narrow_student(tiny_bert, fine_tuned, beir, text_file, tmp_path):
    prune.main(["--teacher", str(tiny_bert), "--data", f"text:{text_file}", "--layers", "2", "--width", "16",
                "--output", str(tmp_path / "student")])  # fmt: skip
    folder = run("simtinybert", tmp_path / "out", task="rerank", model=tmp_path / "student",
                 teacher=fine_tuned["rerank"], data=f"beir:{beir}")  # fmt: skip
    assert ElasticModel.from_pretrained(folder).config.hidden_size == 16


@pytest.mark.parametrize("name", ["tinybert", "minilm", "lm-distil"])
def test_task_agnostic_systems_train_a_student_of_another_width(tiny_bert, text_file, tmp_path, name):
    prune.main(["--teacher", str(tiny_bert), "--data", f"text:{text_file}", "--layers", "2", "--width", "16",
                "--output", str(tmp_path / "student")])  # fmt: skip
    options = ["--relation-heads", "4"] if name == "minilm" else []
    folder = run(
        name, tmp_path / "out", *options, model=tmp_path / "student", teacher=tiny_bert, data=f"text:{text_file}"
    )
    before, after = (ElasticModel.from_pretrained(path) for path in (tmp_path / "student", folder))
    assert not torch.equal(
        before.encoder.layers[0].feed_forward.up.weight, after.encoder.layers[0].feed_forward.up.weight
    )


def test_a_head_for_masked_words_then_condenser_and_relations_of_its_head(
    tiny_bert, pruned, text_file, tmp_path, inputs
):
    """The encoder stays under a new head; Condenser changes it, and what it writes is a teacher like any other."""
    headless = tmp_path / "headless"
    load = load_model(str(tiny_bert))
    shutil.copytree(tiny_bert, headless)
    BertModel.from_pretrained(tiny_bert).save_pretrained(headless)
    with pytest.raises(InputError, match="no masked language model head"):
        load_head(load_model(str(headless)), str(headless))
    with_head = run("lm-head", tmp_path / "lm", model=headless, data=f"text:{text_file}")
    found = load_model(str(with_head))
    assert torch.equal(found.hidden(**inputs, level=WHOLE), load.hidden(**inputs, level=WHOLE))
    assert load_head(found, str(with_head))(torch.zeros(1, 32)).shape == (1, load.config.vocab_size)
    condenser = run("condenser", tmp_path / "condenser", model=with_head, data=f"text:{text_file}")
    changed = load_model(str(condenser))
    assert not torch.allclose(changed.hidden(**inputs, level=WHOLE), load.hidden(**inputs, level=WHOLE), atol=1e-5)
    assert changed.config.pooling == load.config.pooling
    assert changed.config.normalize == load.config.normalize
    run("condenser-head", tmp_path / "out", "--relation-heads", "4", model=pruned, teacher=condenser,
        data=f"text:{text_file}")  # fmt: skip
    with pytest.raises(InputError, match="no Condenser head"):
        run("condenser-head", tmp_path / "other", "--relation-heads", "4", model=pruned, teacher=with_head,
            data=f"text:{text_file}")  # fmt: skip


def test_relations_of_a_teacher_of_another_width_are_kept(tiny_bert, pruned, text_file, tmp_path, capsys):
    """The large teacher of Table 8: other width and layers, the same pieces of words."""
    prune.main(["--teacher", str(tiny_bert), "--data", f"text:{text_file}", "--width", "16",
                "--output", str(tmp_path / "narrow")])  # fmt: skip
    distil.main(["--model", str(tmp_path / "narrow"), "--teacher", str(tiny_bert), "--data", f"text:{text_file}",
                 *SHORT, "--relation-heads", "4", "--output", str(tmp_path / "out")])  # fmt: skip
    with pytest.raises(InputError, match="--relation-heads 32: must divide the hidden size of the model, 16"):
        distil.main(["--model", str(tmp_path / "narrow"), "--teacher", str(tiny_bert), "--data", f"text:{text_file}",
                     *SHORT, "--relation-heads", "32", "--output", str(tmp_path / "other")])  # fmt: skip


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("moebrt --model m", "did you mean moebert|moebert"),
        ("kd --model m --teacher t", "kd needs --task classify or rerank"),
        ("dynabert --task classify --model m --teacher t", "dynabert needs --levels"),
        ("dynabert --task classify --model m --teacher t --levels 50,25 --depths 1", "--depths 1: expected 2 numbers"),
        ("early-exit --task classify --model m", "early-exit needs --exits"),
        ("early-exit --task classify --model m --exits 1.5", "--exits 1.5: expected numbers of layers"),
        ("tinybert --model m", "tinybert needs --teacher"),
        ("tinybert --model m --teacher t --task classify", "trained on plain text: leave out --task"),
        ("kd --task classify --model m --teacher t --exits 2", "--exits does not go with kd"),
        ("lm-head --model m --teacher t", "lm-head has no teacher"),
    ],
)
def test_options_that_do_not_fit_are_refused(words, message):
    with pytest.raises(InputError, match=message):
        baseline.main([*words.split(), "--data", "pydoc", "--output", "nowhere"])


def test_every_system_is_there():
    assert {"kd", "dynabert", "moebert", "tinybert", "minilm", "early-exit", "lm-distil", "simtinybert"} <= set(
        BASELINES
    )
