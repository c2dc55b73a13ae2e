"""Muon in fp32 is torch's, up to the rounding of bfloat16."""

import copy
import os
import subprocess
import sys

import pytest
import torch
from torch.optim import Muon

from elasticlm.trainer import loop
from elasticlm.trainer.loop_options import LoopOptions
from elasticlm.trainer.muon import Fp32Muon, orthogonalised


@pytest.mark.parametrize("shape", [(24, 24), (48, 16), (16, 48)], ids=str)
def test_steps_are_torchs_up_to_rounding(shape):
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(shape, generator=generator)
    found = []
    for kind in (Muon, Fp32Muon):
        parameter = torch.nn.Parameter(start.clone())
        optimizer = kind([parameter], lr=0.1, weight_decay=0.01)
        gradients = torch.Generator().manual_seed(1)
        for _ in range(3):
            parameter.grad = torch.randn(shape, generator=gradients)
            optimizer.step()
        found.append(parameter.detach())
    theirs, ours = (after - start for after in found)
    assert (ours - theirs).norm() / theirs.norm() < 0.02
    assert (ours - theirs).abs().max() > 0, "the same precision?"


def test_states_are_torchs():
    parameter = torch.nn.Parameter(torch.ones(4, 4))
    ours, theirs = Fp32Muon([parameter], lr=0.1), Muon([parameter], lr=0.1)
    parameter.grad = torch.eye(4)
    ours.step()
    theirs.load_state_dict(copy.deepcopy(ours.state_dict()))
    assert torch.equal(theirs.state[parameter]["momentum_buffer"], ours.state[parameter]["momentum_buffer"])


def test_singular_values_come_near_one():
    matrix = torch.randn(30, 20, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalised(matrix, (3.4445, -4.7750, 2.0315), 5, 1e-7))
    assert values.min() > 0.5
    assert values.max() < 1.5


@pytest.mark.parametrize(("native", "kind"), [(True, Muon), (False, Fp32Muon)])
def test_fp32_is_taken_where_bfloat16_is_slow(monkeypatch, native, kind):
    monkeypatch.setattr(loop, "has_native_bf16", lambda: native)
    modules = torch.nn.ModuleDict({"layers": torch.nn.ModuleList([torch.nn.Linear(4, 4)])})
    wrapped = torch.nn.ModuleDict({"model": modules})
    _, muon = loop.make_optimizers(wrapped, LoopOptions(optimizer="muon"))
    assert type(muon) is kind


def test_bfloat16_is_not_native_where_onednn_may_not_use_it():
    code = "from elasticlm.trainer.processes import has_native_bf16; print(has_native_bf16())"
    limited = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2", "CUDA_VISIBLE_DEVICES": ""}
    found = subprocess.run([sys.executable, "-c", code], env=limited, capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["False"]
