"""The serving core without TorchServe: the same answers as from the served archives, and another server in one file."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import requests
from driving import QUERIES, ask_idle
from plain_server import PlainServer

pytestmark = pytest.mark.end_to_end

TEXTS = ["a cold river", *QUERIES[:7]]
BODIES = {
    "search": [{"text": TEXTS[0]}, {"query": TEXTS[1], "k": 3}],
    "score": [{"query": TEXTS[0], "passages": TEXTS[1:4]}],
    "classify": [{"sentence1": TEXTS[0], "sentence2": TEXTS[1]}, {"sentence1": TEXTS[0]}],
    "two": [{"query": TEXTS[0], "k": 3}],
}
BINARY = {"Accept": "application/octet-stream"}

WITHOUT_TS = """
import json, sys, tempfile
from pathlib import Path

sys.modules["ts"] = None  # importing it fails
from elasticlm.serving.backlog import Backlog
from elasticlm.serving.bundle import unpack
from elasticlm.serving.core import ServingCore
from elasticlm.serving.settings import Settings
from elasticlm.serving.wire import RawRequest

archives, bodies, binary, texts = json.loads(sys.stdin.read())
answers = {}
for name, archive in archives.items():
    with tempfile.TemporaryDirectory() as folder:
        _, config = unpack(archive, Path(folder)).read_settings()
        core = ServingCore.open(Path(folder), Settings.of_section(config["handler"]), batch_size=8)

        def ask(bodies, headers={}):
            requests = [RawRequest(body if isinstance(body, bytes) else json.dumps(body).encode(), headers)
                        for body in bodies]
            responses, _ = core.handle(requests, Backlog(), 0.0)
            return [[response.status, dict(response.headers), response.body.hex()] for response in responses]

        answers[name] = [ask([body])[0] for body in bodies[name]]
        if name in ("search", "score"):
            answers[name + " binary"] = ask(bodies[name][:1], binary)
        if name == "search":
            queries = [{"text": text} for text in texts]
            answers["bad item"] = ask([*queries[:3], b"{", *queries[4:]])
            tokenise = core.engine.model.tokenize
            def failing(given, *rest):
                if texts[5] in given:
                    raise RuntimeError("deliberate")
                return tokenise(given, *rest)
            core.engine.model.tokenize = failing
            answers["raising item"] = ask(queries)
try:
    import ts
except ImportError:
    print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def answers(archives, parts):
    """The core's answers in a process in which TorchServe cannot be imported: status, headers and body."""
    served = {name: str(archives[name]) for name in ("search", "score", "classify")} | {"two": str(parts / "two.mar")}
    given = json.dumps([served, BODIES, BINARY, TEXTS])
    run = subprocess.run([sys.executable, "-c", WITHOUT_TS], input=given, capture_output=True, text=True, check=True)
    found = json.loads(run.stdout.splitlines()[-1])
    return {name: [(status, headers, bytes.fromhex(body)) for status, headers, body in several]
            for name, several in found.items()}  # fmt: skip


def close(left, right):
    """Whether two JSON values agree, their numbers to 1e-5."""
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(close(left[key], right[key]) for key in left)
    if isinstance(left, list):
        return len(left) == len(right) and all(map(close, left, right))
    return left == pytest.approx(right, abs=1e-5) if isinstance(left, float) else left == right


@pytest.mark.parametrize(("name", "i"), [(name, i) for name, bodies in BODIES.items() for i in range(len(bodies))])
def test_the_core_answers_as_the_served_archive_does(server, answers, name, i):
    status, headers, body = answers[name][i]
    assert (status, headers["Content-Type"]) == (200, "application/json")
    reply = ask_idle(server, name, BODIES[name][i], level=headers["X-Elastic-Level"])
    assert reply.headers["X-Elastic-Level"] == headers["X-Elastic-Level"]
    assert close(json.loads(body), reply.json())


@pytest.mark.parametrize("name", ["search", "score"])
def test_binary_answers_are_the_same_bytes(server, answers, name):
    ((status, headers, body),) = answers[f"{name} binary"]
    assert (status, headers["Content-Type"]) == (200, "application/octet-stream")
    reply = ask_idle(server, name, BODIES[name][0], level=headers["X-Elastic-Level"], **BINARY)
    assert reply.headers["X-Elastic-Level"] == headers["X-Elastic-Level"]
    assert np.abs(np.frombuffer(body, "<f4") - np.frombuffer(reply.content, "<f4")).max() < 1e-5


@pytest.mark.parametrize(("case", "bad", "status", "code"), [
    ("bad item", 3, 400, "bad_json"), ("raising item", 5, 500, "internal"),
])  # fmt: skip
def test_one_bad_item_in_a_batch_of_eight_fails_alone(answers, model, case, bad, status, code):
    found = answers[case]
    assert [item[0] for item in found] == [status if i == bad else 200 for i in range(8)]
    bodies = [json.loads(item[2]) for item in found]
    assert bodies[bad]["error"]["code"] == code
    for i in set(range(8)) - {bad}:
        expected = model.embed([TEXTS[i]], level=bodies[i]["level"])[0].numpy()
        assert np.abs(np.array(bodies[i]["embedding"]) - expected).max() < 1e-5


def test_another_server_takes_one_file(archives, tmp_path, server):
    plain = PlainServer(archives["search"], tmp_path / "served")
    try:
        url = f"http://127.0.0.1:{plain.server_port}/"

        def ask(body):
            return requests.post(url, json=body, timeout=30)

        idle = ask({"text": TEXTS[0]})
        assert (idle.status_code, idle.headers["X-Elastic-Level"]) == (200, "100")
        assert close(idle.json(), ask_idle(server, "search", {"text": TEXTS[0]}).json())
        assert ask({"txt": "ice"}).json()["error"]["code"] == "unknown_field"
        with plain.turn, ThreadPoolExecutor(40) as pool:  # all of them wait
            replies = [pool.submit(ask, {"text": text}) for text in TEXTS * 5]
            while plain.waiting < len(replies):
                pass
            plain.turn.release()
            done = [reply.result() for reply in replies]
            plain.turn.acquire()
        by_depth = sorted((int(reply.headers["X-Elastic-Queue-Depth"]), reply.headers["X-Elastic-Level"])
                          for reply in done)  # fmt: skip
        assert by_depth[0][0] == 0
        assert by_depth[-1] == (39, "10")
    finally:
        plain.shutdown()
        plain.server_close()
