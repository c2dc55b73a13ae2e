"""Algorithm 1: its gradient, its schedule, its checkpoints."""

import contextlib
import json
from itertools import pairwise

import numpy as np
import pytest
import torch
from random_texts import make_texts

from elasticlm.errors import InputError
from elasticlm.model.elastic_model import ElasticModel
from elasticlm.model.teacher import load_model
from elasticlm.trainer.checkpoints import Checkpoints, TrainingLog
from elasticlm.trainer.loop import (
    Steps,
    Stopwatch,
    accumulate_gradients,
    evaluate,
    learning_rate_factor,
    level_weights,
    levels_of_step,
    make_optimizers,
    train,
)
from elasticlm.trainer.loop_options import LoopOptions
from elasticlm.trainer.objectives.align import Align
from elasticlm.trainer.training_texts import TokenizedTexts

TEXTS = make_texts(60, seed=7)
LEVELS = (100, 50, 30, 20, 10, 5)


@pytest.fixture
def make_objective(tiny_artifact, tiny_bert, processes):
    def make():
        model, teacher = ElasticModel.from_pretrained(tiny_artifact), load_model(str(tiny_bert))
        return Align(model, TokenizedTexts.of(model, TEXTS, "query"), teacher.embed(TEXTS), teacher.embed(TEXTS[:20]),
                     temperature=0.05, passages_per_step=20, processes=processes, chunk_size=16, seed=0)  # fmt: skip

    return make


def options(**changes):
    small = {"max_steps": 12, "batch_size": 8, "dev_examples": 6, "checkpoint_every": 5, "precision": "fp32"}
    return LoopOptions(**{**small, "freeze_embeddings": True, **changes})


@pytest.mark.parametrize("largest", [1, 3])
def test_gradient_equals_that_of_the_weighted_mean_over_levels(make_objective, largest):
    rows, weights = np.arange(16), {100: largest, 50: 1, 10: 1}
    objective = make_objective()
    accumulate_gradients(objective, rows, 0, weights)
    plain = make_objective()
    (batch,) = plain.batches(rows, 0)
    whole = sum(weight * plain.losses(batch, level).mean() for level, weight in weights.items())
    (whole / sum(weights.values())).backward()
    pairs = list(zip(objective.model.named_parameters(), plain.model.parameters(), strict=True))
    largest = max(p.grad.abs().max() for _, p in pairs if p.grad is not None)
    for (name, found), expected in pairs:
        if expected.grad is not None and expected.numel():
            max_diff = (found.grad - expected.grad).abs().max() / largest
            assert max_diff < 1e-5, (name, max_diff)


def test_two_levels_a_step_are_the_smallest_and_another_drawn_alike():
    seen = [levels_of_step(LEVELS, "2", seed=0, step=step) for step in range(600)]
    assert all(len(levels) == 2 and levels[-1] == 5 for levels in seen)
    counts = [sum(level in levels for levels in seen) for level in LEVELS[:-1]]
    assert 90 < min(counts) <= max(counts) < 150  # 120 each on average


def test_more_levels_a_step_are_the_largest_and_others():
    seen = [levels_of_step(LEVELS, "4", seed=0, step=step) for step in range(600)]
    assert all(list(levels) == sorted(set(levels), reverse=True) and len(levels) == 4 for levels in seen)
    assert all(levels[0] == 100 for levels in seen)
    counts = [sum(level in levels for levels in seen) for level in LEVELS[1:]]
    assert 320 < min(counts) <= max(counts) < 400  # 360 each on average


def test_level_weights_go_from_the_largest_down():
    assert level_weights(LEVELS, "6,2,1") == {100: 6, 50: 2, 30: 1, 20: 1, 10: 1, 5: 1}
    assert level_weights((50,), "6,2,1") == {50: 6}
    assert set(level_weights(LEVELS, "1").values()) == {1}


def test_all_levels_or_one_alone():
    assert levels_of_step(LEVELS, "all", 0, 0) == LEVELS == levels_of_step(LEVELS, "6", 0, 0)
    assert levels_of_step(LEVELS, "1", 0, 7) == (5,)
    assert levels_of_step(LEVELS, "largest", 0, 7) == (100,)


@pytest.mark.parametrize("decay", ["linear", "cosine"])
def test_learning_rate_rises_to_its_peak_and_falls_to_nearly_nothing(decay):
    factors = [learning_rate_factor(step, 100, 0.1, decay) for step in range(100)]
    assert factors[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert all(later <= earlier for earlier, later in pairwise(factors[9:]))
    assert 0 < factors[-1] < 0.02
    assert factors[55] == pytest.approx(0.5, abs=0.02)


def test_a_trapezoid_holds_its_peak_and_then_falls_in_a_line():
    factors = [learning_rate_factor(step, 100, 0.1, "trapezoid") for step in range(100)]
    assert factors[4] == 0.5
    assert set(factors[9:61]) == {1.0}
    assert factors[80] == pytest.approx(0.5)
    assert factors[99] == pytest.approx(0.025)


def test_a_trapezoid_may_end_sooner_or_later_than_it_was_started_for(make_objective, tmp_path, monkeypatch):
    def stopped_at_step_6(max_steps, output):
        objective = make_objective()
        batches = objective.batches

        def crash(rows, step):
            if step == 6:
                raise MemoryError
            return batches(rows, step)

        monkeypatch.setattr(objective, "batches", crash)
        with pytest.raises(MemoryError):
            train(objective, options(decay="trapezoid", warmup=0.001, max_steps=max_steps), fresh(output), {})

    def fresh(output):
        return Checkpoints(tmp_path / output, resume=False, overwrite=False)

    train(make_objective(), options(decay="trapezoid", warmup=0.001), fresh("whole"), {})
    stopped_at_step_6(200, "shortened")
    resumed = Checkpoints(tmp_path / "shortened", resume=True, overwrite=False)
    train(make_objective(), options(decay="trapezoid", warmup=0.001), resumed, {})
    weights = [(tmp_path / output / "model.safetensors").read_bytes() for output in ("whole", "shortened")]
    assert weights[0] == weights[1]

    stopped_at_step_6(200, "over")
    with pytest.raises(InputError, match=r"--max-steps 4: .* has done 5 already"):
        train(make_objective(), options(decay="trapezoid", warmup=0.001, max_steps=4),
              Checkpoints(tmp_path / "over", resume=True, overwrite=False), {})  # fmt: skip


def test_muon_takes_the_layers_matrices_and_adamw_the_rest(make_objective):
    objective = make_objective()
    objective.model.encoder.embeddings.requires_grad_(False)
    adamw, muon = make_optimizers(objective.model, options(optimizer="muon"))
    matrices = {id(p) for group in muon.param_groups for p in group["params"]}
    rest = {id(p) for group in adamw.param_groups for p in group["params"]}
    for name, p in objective.model.named_parameters():
        expected = matrices if "layers" in name and p.ndim == 2 else rest
        assert (id(p) in expected) == ("embeddings" not in name), name
    assert not matrices & rest


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_an_interrupted_run_resumes_bit_for_bit(make_objective, tmp_path, optimizer, monkeypatch):
    chosen = options(optimizer=optimizer, levels_per_step="2", dev_every=4)
    train(make_objective(), chosen, Checkpoints(tmp_path / "whole", resume=False, overwrite=False), {})

    stopped = make_objective()
    batches = stopped.batches

    def crash_at_step_8(rows, step):
        if step == 8:
            raise MemoryError
        return batches(rows, step)

    monkeypatch.setattr(stopped, "batches", crash_at_step_8)
    with pytest.raises(MemoryError):
        train(stopped, chosen, Checkpoints(tmp_path / "parts", resume=False, overwrite=False), {})
    assert not (tmp_path / "parts").exists()
    torch.manual_seed(1)  # nothing may hang on the global generator
    resumed = make_objective()
    steps = []
    batches_again = resumed.batches
    monkeypatch.setattr(resumed, "batches", lambda rows, step: steps.append(step) or batches_again(rows, step))
    train(resumed, chosen, Checkpoints(tmp_path / "parts", resume=True, overwrite=False), {})

    assert min(steps) == 5  # the checkpoint's
    for file in ("model.safetensors", "loss.csv"):
        assert (tmp_path / "parts" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes(), file
    assert not (tmp_path / "parts.checkpoints").exists()


def test_resuming_with_other_options_is_refused(make_objective, tmp_path):
    folder = tmp_path / "run"
    objective = make_objective()
    checkpoints = Checkpoints(folder, resume=False, overwrite=False)
    modules = torch.nn.ModuleDict({"model": objective.model, "extra": objective.extra})
    checkpoints.save(5, modules, make_optimizers(modules, options()), TrainingLog(), {"lr": 0.001}, 1.0)
    with pytest.raises(InputError, match="unfinished run"):
        Checkpoints(folder, resume=False, overwrite=False)
    again = Checkpoints(folder, resume=True, overwrite=False)
    with pytest.raises(InputError, match=r"--lr 0.001, not 0.0005"):
        train(make_objective(), options(), again, {})


def test_training_lowers_the_dev_loss_of_every_smaller_level(make_objective, tmp_path):
    objective = make_objective()
    report = train(objective, options(max_steps=60, batch_size=16, lr=3e-3),
                   Checkpoints(tmp_path / "out", resume=False, overwrite=False), {})  # fmt: skip
    before, after = report["dev_loss_before"], report["dev_loss_after"]
    assert after["50"] < 0.9 * before["50"]
    assert after["10"] < 0.9 * before["10"]
    written = ElasticModel.from_pretrained(tmp_path / "out")
    rows = np.random.default_rng([0, 3]).permutation(60)[:6]
    objective.model = written
    assert evaluate(objective, rows, 16)[10][0] == pytest.approx(after["10"], rel=1e-4)


def test_frozen_embeddings_stay(make_objective, tmp_path, tiny_artifact):
    before = ElasticModel.from_pretrained(tiny_artifact).state_dict()
    for frozen in (True, False):
        output = tmp_path / str(frozen)
        train(make_objective(), options(max_steps=2, freeze_embeddings=frozen),
              Checkpoints(output, resume=False, overwrite=False), {})  # fmt: skip
        after = ElasticModel.from_pretrained(output).state_dict()
        name = "encoder.embeddings.word.weight"
        assert torch.equal(before[name], after[name]) == frozen
        assert not torch.equal(
            before["encoder.layers.0.feed_forward.up.weight"], after["encoder.layers.0.feed_forward.up.weight"]
        )


def test_biases_and_norms_have_no_weight_decay(make_objective):
    objective = make_objective()
    (adamw,) = make_optimizers(objective.model, options(weight_decay=0.2))
    decayed, free = ({id(p) for p in group["params"]} for group in adamw.param_groups)
    assert [group["weight_decay"] for group in adamw.param_groups] == [0.2, 0.0]
    for name, parameter in objective.model.named_parameters():
        if parameter.requires_grad and parameter.numel():
            assert id(parameter) in (free if name.endswith("bias") or "norm" in name else decayed), name


def test_clip_0_leaves_gradients_as_they_are(make_objective, monkeypatch):
    objective = make_objective()

    def refuse(*arguments):
        raise AssertionError("clipped")

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", refuse)
    modules = torch.nn.ModuleDict({"model": objective.model})
    for clip, clipped in ((0.0, False), (1.0, True)):
        own = options(clip=clip, batch_size=4)
        steps = Steps(objective, own, modules, np.arange(8))
        with pytest.raises(AssertionError, match="clipped") if clipped else contextlib.nullcontext():
            steps.run(0, 2, make_optimizers(modules, own), Stopwatch())


@pytest.mark.parametrize(
    "change",
    [{"max_steps": 0}, {"lr": -1.0}, {"clip": -1.0}, {"weight_decay": -0.1}, {"optimizer": "sgd"}, {"warmup": 1.0},
     {"levels_per_step": "some"}, {"precision": "int8"}, {"level_weights": "3,0"}, {"level_weights": "3,much"},
     {"dropout": "1"}],
)  # fmt: skip
def test_options_out_of_range_are_refused(change):
    with pytest.raises(InputError, match=next(iter(change)).replace("_", "-")):
        options(**change)


def test_minutes_fit_the_steps_and_leave_no_trace(tiny_artifact, tiny_beir, tmp_path, monkeypatch, capsys):
    """As if it had been started with so many steps; a resumed run keeps the number, whatever the machine does then."""
    from elasticlm.trainer import finetune, loop

    monkeypatch.setattr(loop, "LEAST_STEPS", 6)
    command = ["--task", "align", "--model", str(tiny_artifact), "--data", f"beir:{tiny_beir}", "--queries", "100",
               "--batch-size", "8", "--precision", "fp32", "--threads", "1", "--checkpoint-every", "2"]  # fmt: skip
    finetune.main([*command, "--max-steps", "6", "--output", str(tmp_path / "six")])
    finetune.main([*command, "--max-steps", "500", "--minutes", "1e-6", "--output", str(tmp_path / "fitted")])
    assert "6 of 500 steps in 1e-06 minutes" in capsys.readouterr().err
    assert json.loads((tmp_path / "fitted/training.json").read_text())["steps"] == 6
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("six", "fitted")]
    assert weights[0] == weights[1]

    finetune.main([*command, "--max-steps", "500", "--minutes", "1e-6", "--decay", "trapezoid", "--dev-every", "2",
                   "--output", str(tmp_path / "corrected")])  # fmt: skip
    assert json.loads((tmp_path / "corrected/training.json").read_text())["steps"] == 4, "2 steps of 60 % are done"

    calls = []

    def stop_in_the_third(*arguments):
        calls.append(1)
        if len(calls) == 8 + 3:  # eight are timed
            raise KeyboardInterrupt
        return original(*arguments)

    original = loop.accumulate_gradients
    monkeypatch.setattr(loop, "accumulate_gradients", stop_in_the_third)
    command += ["--max-steps", "500", "--minutes", "1e-6", "--output", str(tmp_path / "cut")]
    with pytest.raises(KeyboardInterrupt):
        finetune.main(command)
    monkeypatch.setattr(loop, "LEAST_STEPS", 9)
    finetune.main([*command, "--resume"])
    assert (tmp_path / "cut/model.safetensors").read_bytes() == weights[0]
