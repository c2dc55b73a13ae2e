"""Killed at any moment, or out of disk space: an output is whole or absent, and the next run works."""

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import forked_runs
import numpy as np
import pytest

from elasticlm.backend.onnx_runtime import check_export, has_graphs
from elasticlm.schedule.latency import LatencyTable, Setup

pytestmark = pytest.mark.slow

MOMENTS = 20
MEANS_MS = {100: 3.0, 50: 2.0, 10: 1.0}
COMMANDS = ("index", "finetune", "export", "archive")


@pytest.fixture(scope="module")
def run():
    """Run a command in a forked child, see forked_runs."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    server = subprocess.Popen([sys.executable, forked_runs.__file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                              text=True, env=environment)  # fmt: skip
    assert server.stdout.readline() == "ready\n"

    def run(command, argv, **options):
        server.stdin.write(json.dumps({"command": command, "argv": list(map(str, argv))} | options) + "\n")
        server.stdin.flush()
        return json.loads(server.stdout.readline())

    yield run
    server.kill()
    server.communicate()


class Work:
    """One command on small inputs in a folder of its own, and what it writes."""

    def __init__(self, command, folder, artifact, teacher, data):
        self.command, self.folder = command, folder
        shutil.copytree(artifact, folder / "model")
        LatencyTable(LatencyTable.from_means(MEANS_MS).cells, Setup(backend="onnx")).write(folder / "model/latency.csv")
        model, output = folder / "model", folder / "out"
        steps = ["--max-steps", "12", "--batch-size", "16", "--dev-examples", "16", "--checkpoint-every", "1"]
        self.argv = {
            "index": ["--model", teacher, "--data", f"beir:{data}", "--output", output],
            "finetune": ["--task", "align", "--model", model, "--teacher", teacher, "--data", f"beir:{data}", *steps,
                         "--precision", "fp32", "--threads", "1", "--output", output],
            "export": ["--model", model, "--onnx", "fp32", "int8", "--data", f"beir:{data}", "--split", "train"],
            "archive": ["--model", model, "--name", "tiny", "--output", output],
        }[command]  # fmt: skip

    def again(self):
        """The arguments of the run after a killed one."""
        return self.argv + {"finetune": ["--resume", "--overwrite"], "export": []}.get(self.command, ["--overwrite"])

    def output(self):
        """What was written, in a form in which two runs can be compared; None where it is absent. Fails if neither."""
        out = self.folder / "out"
        match self.command:
            case "index" if out.exists():
                return {file.name: file.read_bytes() for file in out.iterdir()}
            case "finetune" if out.exists():
                names = {file.name for file in out.iterdir()}
                weights, log = ((out / name).read_bytes() for name in ("model.safetensors", "loss.csv"))
                return names, weights, log
            case "archive" if (out / "tiny.mar").exists():
                with zipfile.ZipFile(out / "tiny.mar") as archive:
                    assert archive.testzip() is None
                    stamped = ("MAR-INF/MANIFEST.json", "artifact/onnx/fp32/export.json", "artifact/config.json")
                    return {each.filename: each.CRC for each in archive.infolist() if each.filename not in stamped}
            case "export":
                found = {}
                for precision in ("fp32", "int8"):
                    if has_graphs(self.folder / "model", precision):
                        check_export(self.folder / "model", precision)
                        graphs = (self.folder / "model/onnx" / precision).glob("*.onnx")
                        found[precision] = {file.name: file.read_bytes() for file in graphs}
                return found or None

    def files(self):
        """The names of all files and folders, hidden ones included, except locks, which a kill may leave."""
        return {str(path.relative_to(self.folder)) for path in self.folder.rglob("*") if path.suffix != ".lock"}

    def leftovers(self):
        return {name for name in self.files() if Path(name).name.startswith(".")}


@pytest.fixture
def work(request, tmp_path, tiny_artifact, tiny_bert, beir):
    return Work(request.param, tmp_path, tiny_artifact, tiny_bert, beir)


@pytest.mark.parametrize("work", COMMANDS, indirect=True)
def test_killed_at_twenty_moments_an_output_is_whole_or_absent_and_the_next_run_completes_it(run, work):
    whole = run(work.command, work.argv)
    assert whole["code"] == 0, whole["stderr"]
    seconds = run(work.command, work.again())["seconds"]  # the first one has filled caches
    expected, files = work.output(), work.files()
    assert expected
    assert not work.leftovers()
    moments = (np.arange(MOMENTS) + np.random.default_rng(0).random(MOMENTS)) / MOMENTS * seconds
    killed = absent = resumed = 0
    for kill_after_s in moments.tolist():
        for path in (*work.folder.glob("out*"), work.folder / "model/onnx"):
            shutil.rmtree(path, ignore_errors=True)
        killed += run(work.command, work.argv, kill_after_s=kill_after_s)["code"] < 0
        found = work.output()
        absent += found is None
        if work.command == "export" and found:
            assert found == {precision: expected[precision] for precision in found}
        else:
            assert found in (None, expected), kill_after_s
        unfinished = bool(list(work.folder.glob("out.checkpoints/step-*")))
        after = run(work.command, work.again())
        assert after["code"] == 0, after["stderr"]
        assert ("resuming at step" in after["stderr"]) == unfinished
        resumed += unfinished
        assert work.output() == expected, kill_after_s
        assert work.files() == files, kill_after_s
    print(f"{work.command}: {seconds:.2f} s, killed {killed}, absent {absent}, resumed {resumed} of {MOMENTS}")
    assert killed > MOMENTS / 2
    assert work.command != "finetune" or resumed > MOMENTS / 4


@pytest.mark.parametrize("work", COMMANDS, indirect=True)
@pytest.mark.parametrize("most_bytes", [0, 9_000])
def test_a_full_disk_is_one_line_and_leaves_nothing(run, work, most_bytes):
    before = work.files()
    ended = run(work.command, work.argv, most_bytes=most_bytes)
    assert ended["code"] == 2, ended["stderr"]
    *_, last = ended["stderr"].splitlines()
    print(work.command, most_bytes, last)
    assert re.match(r"error: .*is full \(.*File too large", last)
    assert "Traceback" not in ended["stderr"]
    assert work.output() is None
    assert {name for name in work.files() - before if "out.checkpoints" not in name} <= {"model/onnx", "out"}
    assert not work.leftovers()
    again = run(work.command, work.again())
    assert again["code"] == 0, again["stderr"]
