"""The quickstart's blocks run as they stand, on a tiny teacher: those marked <!-- quick --> in order, in one folder."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import faiss
import pytest
from sentence_transformers import SentenceTransformer

ROOT = Path(__file__).parent.parent
QUICK = re.compile(r"<!-- quick -->\n```(sh|python)\n(.*?)```", re.S)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A folder where the model store is as in the checkout, on ports that are free."""
    folder = tmp_path_factory.mktemp("checkout")
    (folder / "env.sh").write_text("")
    settings = (ROOT / "model_store/config.properties").read_text()
    ports = {port: str(free_port()) for port in ("8080", "8081", "8082")}
    for port, free in ports.items():
        settings = settings.replace(f":{port}", f":{free}")
    extra = ("grpc_inference_port", "grpc_management_port", "initial_worker_port", "initial_distribution_port")
    settings += "\n" + "".join(f"{name}={free_port()}\n" for name in extra)
    (folder / "model_store").mkdir()
    (folder / "model_store/config.properties").write_text(settings)
    return folder, ports


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run(checkout: Path, temporary: str, language: str, code: str) -> str:
    command = ["bash", "-euo", "pipefail", "-c", code] if language == "sh" else [sys.executable, "-c", code]
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "TMPDIR": temporary, "TEMP": temporary, "HF_HUB_OFFLINE": "1",
    }  # fmt: skip
    done = subprocess.run(
        command, cwd=checkout, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture
def temporary():
    """A folder for temporary files with a short name: the path of a worker's socket must be short."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        yield folder


@pytest.mark.slow
def test_the_quick_blocks_run_in_order(checkout, temporary, tiny_bert, tiny_beir):
    folder, ports = checkout
    train, serve, embed = QUICK.findall((ROOT / "docs/quickstart.md").read_text(encoding="utf-8"))

    language, code = train
    assert len(re.findall(r"^elasticlm ", code, re.M)) <= 5
    code = re.sub(r"TEACHER=\S+", f"TEACHER={tiny_bert}", code)
    code = re.sub(r"DATA=\S+", f"DATA=beir:{tiny_beir}", code)
    code = code.replace("--task align", "--task align --max-steps 3 --batch-size 8")
    code = code.replace("elasticlm profile", "elasticlm profile --seconds 0.05")
    output = run(folder, temporary, language, code)
    assert (folder / "model_store/mini.mar").is_file(), output

    language, code = serve
    for port, free in ports.items():
        code = code.replace(f":{port}", f":{free}")
    java = re.sub(r"#.*\n", "", (ROOT / "environment.sh").read_text()).splitlines()
    code = "\n".join(line for line in java if "JAVA_HOME" in line) + "\n" + code
    code = code.replace(
        "torchserve --start --ncs", "trap 'torchserve --stop >/dev/null 2>&1 || true' EXIT\ntorchserve --start --ncs"
    )
    code = code.replace("sleep 1; done", "sleep 0.5; done")
    answer = run(folder, temporary, language, "timeout 120 bash -euo pipefail <<'BLOCK'\n" + code + "\nBLOCK")
    assert '"embedding"' in answer
    assert '"level"' in answer

    run(folder, temporary, *embed)


@pytest.mark.slow
def test_readmes_commands_with_a_model_and_an_index_of_ones_own(tiny_bert, tiny_beir, tmp_path, temporary):
    """As a user has them: a sentence-transformers folder, queries, passages, a FAISS file that other software made."""
    (block,) = [block for block in re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.S)
                if "passages.faiss" in block]  # fmt: skip
    corpus = [json.loads(line) for line in (tiny_beir / "corpus.jsonl").read_text().splitlines()]
    vectors = SentenceTransformer(str(tiny_bert), device="cpu").encode(
        [f"{passage['title']} {passage['text']}" for passage in corpus]
    )
    index = faiss.IndexFlatL2(vectors.shape[1])  # the default of many frameworks; the vectors have length 1
    index.add(vectors)
    faiss.write_index(index, str(tmp_path / "passages.faiss"))
    (tmp_path / "ids.txt").write_text("".join(f"{passage['_id']}\n" for passage in corpus))
    folder = tmp_path / "data"
    shutil.copytree(tiny_beir, folder, ignore=shutil.ignore_patterns("qrels"))
    code = block.replace("MODEL", str(tiny_bert)).replace("FOLDER", str(folder))
    code = code.replace("--task align", "--task align --max-steps 3 --batch-size 8")
    code = code.replace("elasticlm profile", "elasticlm profile --seconds 0.05")
    run(tmp_path, temporary, "sh", code)
    assert (tmp_path / "model_store/search.mar").is_file()
