"""Two processes under torchrun: they share the work, and only the first one writes."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import safetensors.numpy

from elasticlm.retrieval.passage_index import PassageIndex
from elasticlm.trainer import finetune, index

SHORT = ["--max-steps", "20", "--batch-size", "16", "--dev-examples", "16", "--precision", "fp32", "--threads", "1"]


def torchrun(tmp_path, *arguments):
    """Run a command in two processes and return its standard output."""
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    run = subprocess.run([*command, "-m", "elasticlm.trainer", *arguments], cwd=tmp_path, env=environment,
                         capture_output=True, text=True, timeout=300)  # fmt: skip
    assert run.returncode == 0, run.stderr
    return run.stdout


@pytest.mark.slow
def test_a_training_in_two_processes_replaces_an_unfinished_run_and_equals_one(
    tiny_artifact, tiny_bert, beir, tmp_path
):
    options = ["--task", "align", "--model", str(tiny_artifact), "--teacher", str(tiny_bert), "--data", f"beir:{beir}",
               *SHORT, "--checkpoint-every", "3"]  # fmt: skip
    (tmp_path / "two.checkpoints/step-00000019").mkdir(parents=True)  # of another run: not even whole
    printed = torchrun(tmp_path, "finetune", *options, "--output", "two", "--overwrite")
    assert len([line for line in printed.splitlines() if line.startswith("{")]) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["two"]
    finetune.main([*options, "--output", str(tmp_path / "one")])
    one, two = (safetensors.numpy.load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    max_diff = max(np.abs(one[name] - two[name]).max() for name in one if one[name].size)
    assert max_diff < 1e-3, max_diff


@pytest.mark.slow
def test_two_processes_make_the_pydoc_set_once_and_one_writes_the_index(tiny_bert, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    options = ["--model", str(tiny_bert), "--data", "pydoc:50"]
    printed = torchrun(tmp_path, "index", *options, "--output", "two")
    assert json.loads(printed.splitlines()[-1])["count"] == 50
    assert len(list((tmp_path / "cache/elasticlm/pydoc").iterdir())) == 1
    index.main([*options, "--output", str(tmp_path / "one")])
    one, two = (PassageIndex.load(tmp_path / name) for name in ("one", "two"))
    assert np.abs(one.vectors() - two.vectors()).max() < 1e-5
