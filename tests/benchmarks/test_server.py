"""The private TorchServe: starts, tells why it does not, takes its settings, leaves nothing behind."""

import subprocess
import sys
import textwrap
from pathlib import Path

import psutil
import pytest
import requests

from elasticlm.benchmarks.server import ServerError, TorchServe

pytestmark = pytest.mark.end_to_end

HANDLER = """
import time

class Handler:
    def initialize(self, context):
        self.config = context.model_yaml_config
        {broken}

    def handle(self, data, context):
        time.sleep(self.config["handler"]["sleep_s"])
        for item in range(len(data)):
            context.set_response_header(item, "X-Elastic-Level", "50")
            context.set_response_header(item, "X-Elastic-Queue-Depth", "0")
        return [self.config for _ in data]
"""


def pack(folder: Path, name: str, broken: str = "") -> Path:
    handler, config = folder / f"{name}_handler.py", folder / "model-config.yaml"
    handler.write_text(textwrap.dedent(HANDLER).replace("{broken}", broken))
    config.write_text("minWorkers: 3\nmaxWorkers: 3\nbatchSize: 5\nhandler:\n  sleep_s: 0.0\n  policy: slack\n")
    command = ["--model-name", name, "--version", "2.1", "--handler", handler, "--config-file", config]
    subprocess.run(
        [sys.executable, "-m", "model_archiver.model_packaging", *command, "--export-path", folder], check=True
    )
    return folder / f"{name}.mar"


def test_it_serves_with_its_own_settings_and_leaves_nothing(tmp_path):
    archive = pack(tmp_path, "echo")
    before = archive.read_bytes()
    with TorchServe(
        {"mini": archive}, workers=2, batch_size=4, job_queue_size=77, handler={"policy": "fixed:50"}, token_auth=True
    ) as server:
        state = server.describe("mini")
        assert (state["batchSize"], state["minWorkers"], state["jobQueueStatus"]["remainingCapacity"]) == (4, 2, 77)
        workers = [worker["pid"] for worker in server.workers("mini")]
        assert len(workers) == 2
        url = f"{server.inference_url}/predictions/mini"
        answer = requests.post(url, data=b"{}", headers=server.headers(), timeout=10)
        assert answer.json()["handler"]["policy"] == "fixed:50"
        assert answer.json()["handler"]["management_url"] == server.management_url
        assert answer.json()["handler"]["management_key_file"] == str(server.key_file)
        assert requests.post(url, data=b"{}", timeout=10).status_code == 400  # no token
        processes, home = [server.process.pid, *workers], server.home
    assert not any(psutil.pid_exists(pid) for pid in processes)
    assert not home.exists()
    assert "Model server started" in server.logs()
    assert archive.read_bytes() == before


def test_a_handler_that_does_not_load_is_reported_with_its_own_words(tmp_path):
    archive = pack(tmp_path, "broken", 'raise ValueError("the table has no level 50")')
    with pytest.raises(ServerError, match=r"could not load broken(.|\n)*ValueError: the table has no level 50\s*$"):
        TorchServe({"broken": archive}).__enter__()


def test_a_missing_archive_is_named():
    with pytest.raises(ServerError, match=r"nowhere\.mar: no such archive"):
        TorchServe({"mini": "nowhere.mar"})
