"""--dropout: masks are a function of the seed and the step, and both passes of a chunk have the same."""

import json

import numpy as np
import pytest
import torch
from random_texts import make_texts

from elasticlm.errors import InputError
from elasticlm.model.dropout import NO_DROPOUT, Dropout
from elasticlm.model.elastic_model import ElasticModel
from elasticlm.model.teacher import load_model
from elasticlm.trainer import finetune, loop
from elasticlm.trainer.checkpoints import Checkpoints
from elasticlm.trainer.dropout_masks import dropout_of, dropping
from elasticlm.trainer.loop import Steps, Stopwatch, evaluate, make_optimizers, train
from elasticlm.trainer.loop_options import LoopOptions
from elasticlm.trainer.objectives.align import Align
from elasticlm.trainer.representations import Representations
from elasticlm.trainer.training_texts import TokenizedTexts

TEXTS = make_texts(60, seed=7)
RATES = Dropout(embeddings=0.1, attention=0.2, attention_output=0.1, feed_forward_output=0.1)


@pytest.fixture
def make_objective(tiny_artifact, tiny_bert, processes):
    def make():
        model, teacher = ElasticModel.from_pretrained(tiny_artifact), load_model(str(tiny_bert))
        return Align(model, TokenizedTexts.of(model, TEXTS, "query"), teacher.embed(TEXTS), teacher.embed(TEXTS[:20]),
                     temperature=0.05, passages_per_step=20, processes=processes, chunk_size=4, seed=0)  # fmt: skip

    return make


def options(**changes):
    small = {"max_steps": 8, "batch_size": 8, "dev_examples": 6, "checkpoint_every": 3, "precision": "fp32"}
    return LoopOptions(**{**small, **changes})


def first_losses(objective, chosen, step=0):
    modules = torch.nn.ModuleDict({"model": objective.model})
    steps = Steps(objective, chosen, modules, np.arange(40))
    return steps.run(step, 8, make_optimizers(modules, chosen), Stopwatch())


def trained(objective, chosen, output, *, resume=False):
    train(objective, chosen, Checkpoints(output, resume=resume, overwrite=False), {})
    return (output / "model.safetensors").read_bytes()


def test_losses_differ_with_dropout_and_are_a_function_of_the_seed_and_the_step(make_objective):
    without = first_losses(make_objective(), options())
    losses = [first_losses(make_objective(), options(dropout="teacher", seed=seed), step)
              for seed, step in ((0, 0), (0, 0), (1, 0), (0, 1))]  # fmt: skip
    assert losses[0] == losses[1]
    assert all(losses[0][level] != losses[3][level] for level in without)
    for level, loss in without.items():
        assert losses[0][level] != loss
        assert level == 100 or losses[0][level] == pytest.approx(loss, rel=0.5)  # 100 is the teacher: no loss without


def test_without_dropout_nothing_is_drawn_and_no_generator_is_touched(make_objective, monkeypatch):
    expected = first_losses(make_objective(), options())
    for name in ("manual_seed", "set_rng_state"):
        monkeypatch.setattr(torch, name, lambda *arguments: pytest.fail("a generator was changed"))
    monkeypatch.setattr(torch.nn.functional, "dropout", lambda *arguments: pytest.fail("values were dropped"))
    assert first_losses(make_objective(), options(dropout="0.0")) == expected


def test_the_dev_loss_is_without_dropout(make_objective):
    chosen, rows = options(dropout="0.5"), np.arange(40, 60)
    expected = evaluate(make_objective(), rows, 8)
    assert evaluate(make_objective(), rows, 8) == expected
    objective = make_objective()
    modules = torch.nn.ModuleDict({"model": objective.model})
    steps = Steps(objective, chosen, modules, np.arange(40))
    optimizers = make_optimizers(modules, options(lr=1e-30, weight_decay=0.0))
    steps.run(0, 8, optimizers, Stopwatch())
    assert evaluate(objective, rows, 8) == expected


def test_an_interrupted_run_with_dropout_resumes_bit_for_bit(make_objective, tmp_path, monkeypatch):
    chosen = options(dropout="teacher")
    whole = trained(make_objective(), chosen, tmp_path / "whole")
    assert whole != trained(make_objective(), options(), tmp_path / "without")
    stopped = make_objective()
    batches = stopped.batches

    def crash_at_step_5(rows, step):
        if step == 5:
            raise MemoryError
        return batches(rows, step)

    monkeypatch.setattr(stopped, "batches", crash_at_step_5)
    with pytest.raises(MemoryError):
        trained(stopped, chosen, tmp_path / "parts")
    torch.manual_seed(1)  # nothing may hang on the global generator
    with pytest.raises(InputError, match="--dropout teacher, not 0"):
        trained(make_objective(), options(), tmp_path / "parts", resume=True)
    assert trained(make_objective(), chosen, tmp_path / "parts", resume=True) == whole


def test_the_gradient_of_cached_representations_is_that_of_the_direct_loss_with_the_same_masks(tiny_artifact):
    texts_of = ElasticModel.from_pretrained(tiny_artifact)
    texts = TokenizedTexts.of(texts_of, TEXTS[:12], "query")
    weights = torch.randn(12, 32, generator=torch.Generator().manual_seed(0))

    def gradients(run):
        model = ElasticModel.from_pretrained(tiny_artifact)
        with dropping(model, RATES, 0, 5, 0):
            run(lambda rows: model(**texts.inputs(rows), level=50))
            drawn = torch.rand(3)
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}, drawn

    def cached(encode):
        representations = Representations(encode, np.arange(12), chunk_size=4)
        (representations.vectors * weights).sum().backward()
        torch.rand(5)  # what another level draws in between
        representations.backward()

    def direct(encode):
        vectors = torch.cat([encode(np.arange(i, i + 4)) for i in (0, 4, 8)])
        torch.rand(5)
        (vectors * weights).sum().backward()

    (found, drawn), (expected, drawn_directly) = gradients(cached), gradients(direct)
    assert found.keys() == expected.keys()
    max_diff = max((found[name] - expected[name]).abs().max().item() for name in found if found[name].numel())
    assert max_diff < 1e-5
    assert torch.equal(drawn, drawn_directly), "the second pass moved the generator"


def test_processes_and_steps_have_masks_of_their_own_and_the_generator_is_put_back(tiny_artifact):
    model = ElasticModel.from_pretrained(tiny_artifact)
    state, drawn = torch.get_rng_state(), []
    for seed, step, rank in ((0, 1, 0), (0, 1, 0), (0, 1, 1), (0, 2, 0), (1, 1, 0)):
        with dropping(model, RATES, seed, step, rank):
            assert model.dropout_at(50) == RATES
            drawn.append(tuple(torch.rand(4).tolist()))
    assert len(set(drawn)) == 4
    assert torch.equal(torch.get_rng_state(), state)
    assert model.dropout_at(50) == NO_DROPOUT


def test_teacher_is_the_rates_of_the_configuration_and_a_number_one_rate(tiny_artifact):
    model = ElasticModel.from_pretrained(tiny_artifact)
    model.config.hidden_dropout_prob = 0.3
    assert dropout_of("teacher", model).attention_output == 0.3
    assert dropout_of("teacher", model).attention == 0.1
    assert dropout_of("0.25", model).attention == 0.25
    assert dropout_of("0", model) == NO_DROPOUT


@pytest.mark.parametrize("dropout", ["1", "-0.1", "some", "nan"])
def test_other_values_are_refused(dropout):
    with pytest.raises(InputError, match=f"--dropout {dropout}: expected teacher, or a share from 0 to below 1"):
        options(dropout=dropout)


def test_the_option_reaches_the_loop_and_the_report(tiny_artifact, beir, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        loop, "dropping", lambda model, dropout, *more: seen.append(dropout) or dropping(model, dropout, *more)
    )
    command = ["--task", "retrieve", "--model", str(tiny_artifact), "--data", f"beir:{beir}", "--max-steps", "1",
               "--batch-size", "8", "--chunk-size", "3", "--precision", "fp32", "--threads", "1"]  # fmt: skip
    finetune.main([*command, "--dropout", "teacher", "--output", str(tmp_path / "out")])
    assert {rates.attention for rates in seen} == {0.1}
    assert json.loads((tmp_path / "out/training.json").read_text())["settings"]["dropout"] == "teacher"
