"""finetune and distil as commands: what they write, what they refuse, and that a killed one goes on."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors

from elasticlm.errors import InputError
from elasticlm.model.artifact import fingerprint
from elasticlm.model.configuration import Passages
from elasticlm.model.elastic_model import ElasticModel
from elasticlm.model.teacher import load_model
from elasticlm.retrieval.passage_index import PassageIndex
from elasticlm.trainer import distil, finetune

ROOT = Path(__file__).parents[2]
SHORT = ["--max-steps", "40", "--batch-size", "16", "--dev-examples", "16", "--precision", "fp32", "--threads", "1"]


def result(capsys):
    return json.loads(capsys.readouterr().out.splitlines()[-1])


@pytest.fixture
def align(tiny_artifact, tiny_bert, beir, tmp_path):
    return ["--task", "align", "--model", str(tiny_artifact), "--teacher", str(tiny_bert), "--data", f"beir:{beir}",
            *SHORT, "--output", str(tmp_path / "out")]  # fmt: skip


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_align_lowers_the_loss_of_smaller_levels_and_keeps_the_teachers_passages(
    align, tiny_bert, tmp_path, capsys, optimizer
):
    finetune.main([*align, "--optimizer", optimizer])
    report = result(capsys)
    for level in ("50", "10"):
        assert report["dev_loss_after"][level] < 0.95 * report["dev_loss_before"][level]
    model = ElasticModel.from_pretrained(tmp_path / "out")
    assert model.config.passages == Passages("teacher", load_model(str(tiny_bert)).fingerprint())
    log = (tmp_path / "out/loss.csv").read_text().splitlines()
    assert log[0] == "step,split,level,loss,RR@10"
    assert len(log) == 1 + 11 * 3 + 40 * 3
    assert (tmp_path / "out/loss.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_align_takes_an_index_of_the_teacher_and_no_other(align, tiny_bert, beir, tmp_path, capsys):
    teacher = load_model(str(tiny_bert))
    rows = [json.loads(line) for line in (beir / "corpus.jsonl").read_text().splitlines()]
    vectors = teacher.embed([row["text"] for row in rows], kind="passage").numpy()
    ids = [row["_id"] for row in rows]
    PassageIndex.build(vectors, ids, fingerprint=teacher.fingerprint(), corpus_sha256=None).save(tmp_path / "index")
    finetune.main([*align, "--index", str(tmp_path / "index")])
    assert result(capsys)["dev_loss_after"]["10"] < result_before(tmp_path)["10"]
    PassageIndex.build(vectors, ids, fingerprint="f" * 64, corpus_sha256=None).save(tmp_path / "other")
    with pytest.raises(InputError, match="another model"):
        finetune.main([*align, "--index", str(tmp_path / "other"), "--overwrite"])
    unknown = PassageIndex.build(np.roll(vectors, 1, axis=0), ids, fingerprint=None, corpus_sha256=None)
    unknown.save(tmp_path / "unknown")
    with pytest.raises(InputError, match="cosine"):
        finetune.main([*align, "--index", str(tmp_path / "unknown"), "--overwrite"])


def result_before(tmp_path):
    return json.loads((tmp_path / "out/training.json").read_text())["dev_loss_before"]


def test_align_never_reads_another_splits_queries(align, beir, tmp_path):
    (beir / "qrels/dev.tsv").unlink(missing_ok=True)
    with pytest.raises(InputError, match="dev"):
        finetune.main([*align, "--split", "dev"])


def test_retriever_lowers_the_loss_and_encodes_passages_by_its_largest_level(tiny_artifact, beir, tmp_path, capsys):
    finetune.main(["--task", "retrieve", "--model", str(tiny_artifact), "--data", f"beir:{beir}", *SHORT,
                   "--lr", "1e-3", "--output", str(tmp_path / "out")])  # fmt: skip
    report = result(capsys)
    for level in ("100", "50", "10"):
        assert report["dev_loss_after"][level] < 0.95 * report["dev_loss_before"][level]
    model = ElasticModel.from_pretrained(tmp_path / "out")
    written = fingerprint(model)
    assert model.config.passages == Passages("largest", written)


def test_distil_lowers_the_dev_loss_at_every_level_and_drops_its_block(
    tiny_artifact, tiny_bert, text_file, tmp_path, capsys
):
    options = ["--relation-heads", "8", "--lr", "3e-3", "--levels-per-step", "all", "--output", str(tmp_path / "out")]
    distil.main(["--model", str(tiny_artifact), "--teacher", str(tiny_bert), "--data", f"text:{text_file}", *SHORT,
                 *options])  # fmt: skip
    report = result(capsys)
    assert set(report["dev_loss_after"]) == {"100", "50", "10"}
    for level, before in report["dev_loss_before"].items():
        assert report["dev_loss_after"][level] < before, level
    with safetensors.safe_open(tmp_path / "out/model.safetensors", "pt") as written:
        assert set(written.keys()) == set(ElasticModel.from_pretrained(tiny_artifact).state_dict())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--task", "classify"], "no labelled sentences"),
        (["--temperature", "-1"], "--temperature"),
        (["--passages", "0"], "--passages"),
        (["--max-steps", "0"], "--max-steps"),
        (["--levels-per-step", "few"], "--levels-per-step"),
        (["--model", "nowhere"], "nowhere"),
        (["--data", "text:nowhere"], "nowhere"),
        (["--index", "nowhere"], "nowhere"),
    ],
)
def test_bad_inputs_of_finetune_are_refused_and_leave_nothing(align, tmp_path, change, message):
    with pytest.raises(InputError, match=message):
        finetune.main([*align, *change])
    assert not list(tmp_path.iterdir())


def test_bad_inputs_of_distil_are_refused(tiny_artifact, tiny_bert, text_file, tmp_path):
    given = ["--model", str(tiny_artifact), "--teacher", str(tiny_bert), "--data", f"text:{text_file}", *SHORT]
    with pytest.raises(InputError, match="--relation-heads 5: must divide the hidden size of the teacher, 32"):
        distil.main([*given, "--relation-heads", "5", "--output", str(tmp_path / "out")])
    assert not list(tmp_path.iterdir())


def run_finetune(arguments):
    command = [sys.executable, "-m", "elasticlm.trainer", "finetune", *arguments]
    return subprocess.Popen(command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, text=True,
                            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_training_is_resumed_to_the_same_weights(align, tmp_path, number):
    align += ["--max-steps", "100", "--checkpoint-every", "3", "--overwrite"]
    with run_finetune(align) as run:
        deadline = time.monotonic() + 120
        while not list(tmp_path.glob("out.checkpoints/step-*/state.json")) and time.monotonic() < deadline:
            assert run.poll() is None
            time.sleep(0.01)
        run.send_signal(number)
        _, said = run.communicate(timeout=120)
    assert not (tmp_path / "out").exists()
    stopped_at = max(int(path.name.removeprefix("step-")) for path in tmp_path.glob("out.checkpoints/step-*"))
    assert 0 < stopped_at < 100
    if number == signal.SIGTERM:
        assert run.returncode == 130
        assert f"stopped after step {stopped_at}" in said
        again = said.split("To resume: ")[1].split("\n")[0]
        assert "--resume" in again
        assert "--overwrite" not in again
    with pytest.raises(InputError, match="unfinished run"):
        finetune.main([option for option in align if option != "--overwrite"])
    finetune.main([*align, "--resume"])
    resumed = {file: (tmp_path / "out" / file).read_bytes() for file in ("model.safetensors", "loss.csv")}
    finetune.main(align)
    for file, written in resumed.items():
        assert (tmp_path / "out" / file).read_bytes() == written, file
