"""The wheel alone, in an environment of its own outside the checkout: train, measure, pack, serve, simulate."""

import json
import os
import subprocess
import sys
import sysconfig
import time
import venv
from pathlib import Path

import pytest
import requests

from elasticlm.benchmarks.server import free_ports, java_home

ROOT = Path(__file__).parents[2]

pytestmark = [pytest.mark.end_to_end, pytest.mark.slow]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The bin folder of a new environment that holds the wheel; what the wheel requires is borrowed from this one."""
    folder = tmp_path_factory.mktemp("installed")
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*build, "--wheel-dir", folder, ROOT], check=True, cwd=folder)
    venv.create(folder / "env", with_pip=False, symlinks=True)
    site = folder / "env" / "lib" / f"python{sysconfig.get_python_version()}" / "site-packages"
    (wheel,) = folder.glob("*.whl")
    python = folder / "env" / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", wheel]
    subprocess.run(install, check=True, cwd=folder)
    borrowed = sysconfig.get_paths()["purelib"]
    # Appended by code: a .pth inside the borrowed folder, such as an editable installation's, is then not processed.
    (site / "borrowed.pth").write_text(f"import sys; sys.path.append({borrowed!r})\n")
    return folder / "env" / "bin"


def test_from_a_teacher_to_a_rush_with_the_installed_commands_alone(installed, tiny_bert, tiny_beir, tmp_path):
    home = tmp_path / "work"
    home.mkdir()
    environment = {
        name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")
    } | {"PATH": f"{installed}:{os.environ['PATH']}", "HF_HUB_OFFLINE": "1"}  # fmt: skip

    def run(*words: str) -> str:
        done = subprocess.run(words, cwd=home, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    code = (
        "import elasticlm\n"
        "from elasticlm import benchmarks, handlers, trainer\n"
        "print(*(package.__file__ for package in (elasticlm, trainer, handlers, benchmarks)))"
    )
    for file in run(str(installed / "python"), "-c", code).split():
        assert file.startswith(str(installed.parent)), file

    data = f"beir:{tiny_beir}"
    run(
        "elasticlm", "prune", "--teacher", str(tiny_bert), "--data", data, "--levels", "100,50,10", "--output", "pruned"
    )
    run("elasticlm", "finetune", "--task", "align", "--model", "pruned", "--teacher", str(tiny_bert), "--data", data,
        "--max-steps", "20", "--batch-size", "8", "--output", "mini")  # fmt: skip
    run(
        "elasticlm", "evaluate", "--model", "mini", "--data", data, "--split", "test", "--output", "mini.json", "--save"
    )
    run("elasticlm", "profile", "--model", "mini", "--rows", "1,8", "--seconds", "0.05")
    run("elasticlm", "archive", "--model", "mini", "--name", "mini", "--output", "store")
    assert (home / "store" / "config.properties").is_file()

    ports = free_ports(7)
    names = ("grpc_inference_port", "grpc_management_port", "initial_worker_port", "initial_distribution_port")
    settings = (home / "store" / "config.properties").read_text()
    for usual, port in zip((8080, 8081, 8082), ports, strict=False):
        settings = settings.replace(f":{usual}", f":{port}")
    settings += "".join(f"\n{name}={port}" for name, port in zip(names, ports[3:], strict=True))
    (home / "store" / "config.properties").write_text(settings)
    temporary = home / "tmp"
    temporary.mkdir()
    environment |= {"TMPDIR": str(temporary), "TEMP": str(temporary), "JAVA_HOME": str(java_home())}
    environment["PATH"] = f"{java_home()}/bin:{environment['PATH']}"
    serve = [str(installed / "python"), "-m", "ts.model_server"]
    start = [*serve, "--start", "--ncs", "--model-store", "store", "--models", "mini=mini.mar", "--ts-config",
             "store/config.properties"]  # fmt: skip
    with open(home / "server.log", "w") as log:  # a file: the server keeps it open, and a pipe would never end
        subprocess.run(start, cwd=home, env=environment, stdout=log, stderr=log, check=True)
    try:
        deadline = time.monotonic() + 120
        reply = None
        while reply is None or reply.status_code != 200:
            assert time.monotonic() < deadline, reply and reply.text
            time.sleep(0.5)
            try:
                reply = requests.post(f"http://127.0.0.1:{ports[0]}/predictions/mini", json={"text": "ice"}, timeout=5)
            except (requests.ConnectionError, requests.Timeout):  # not up yet, or the worker still loads the model
                reply = None
        assert len(reply.json()["embedding"]) == 32
    finally:
        run(*serve, "--stop")

    output = run("elasticlm", "simulate", "--archive", "store/mini.mar", "--data", data, "--split", "test", "--arms",
                 "slack:t=200", "--budgets", "200", "--users", "2", "--duration", "4", "--output", "rush")  # fmt: skip
    assert json.loads(output.splitlines()[-1])["arms"]["slack:t=200,alpha=.6"]["requests"] > 0
    assert (home / "rush" / "index.html").is_file()
