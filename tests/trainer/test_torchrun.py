"""Two processes under torchrun, of one launch or of two: they share the work, and only the first one writes."""

import json
import os
import socket
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


def assert_same_weights(folder):
    one, two = (safetensors.numpy.load_file(folder / name / "model.safetensors") for name in ("one", "two"))
    max_diff = max(np.abs(one[name] - two[name]).max() for name in one if one[name].size)
    assert max_diff < 1e-3, max_diff


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
    assert_same_weights(tmp_path)


@pytest.mark.slow
def test_two_launches_of_one_process_each_equal_one_process(tiny_artifact, tiny_bert, beir, tmp_path):
    """As on two machines: every launch is given its rank and the address of the first."""
    options = ["--task", "align", "--model", str(tiny_artifact), "--teacher", str(tiny_bert), "--data", f"beir:{beir}",
               *SHORT]  # fmt: skip
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = f"127.0.0.1:{free.getsockname()[1]}"
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    launches = [
        subprocess.Popen(
            [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--node-rank", str(rank),
             "--nproc-per-node", "1", "--rdzv-endpoint", endpoint, "-m", "elasticlm.trainer", "finetune", *options,
             "--output", "two"],
            cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        printed = [launch.communicate(timeout=300) for launch in launches]
    finally:
        for launch in launches:
            launch.kill()
    assert [launch.returncode for launch in launches] == [0, 0], printed
    results = [[line for line in out.splitlines() if line.startswith("{")] for out, _ in printed]
    assert [len(lines) for lines in results] == [1, 0]
    finetune.main([*options, "--output", str(tmp_path / "one")])
    assert_same_weights(tmp_path)


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
