"""A server as in production, with token authorisation: the probe has its key, and does without where it has none."""

import time

import pytest
import requests
from archives import archive, servable

from elasticlm.benchmarks.server import TorchServe
from elasticlm.handlers.probe import FAILED_PAUSE_S

pytestmark = pytest.mark.end_to_end

MEANS_MS = {100: 60.0, 50: 40.0, 10: 5.0}
SCHEDULE = {"latency_budget_ms": 200, "policy": "slack", "alpha": 0.5}


@pytest.fixture(scope="module")
def mini(tiny_artifact, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokens")
    return archive("mini", servable(tiny_artifact, folder / "artifact", MEANS_MS), folder, **SCHEDULE)


def ask(server, **headers):
    url = f"{server.inference_url}/predictions/mini"
    return requests.post(url, json={"text": "ice"}, headers=server.headers() | headers, timeout=30)


@pytest.mark.slow
def test_with_its_key_the_handler_sees_the_empty_queue(mini):
    with TorchServe({"mini": mini}, token_auth=True) as server:
        assert ask(server, Authorization="").status_code == 400
        seen = []
        for _ in range(20):
            time.sleep(FAILED_PAUSE_S)  # a probe that times out rests this long: it must cost one answer, not the burst
            seen.append(ask(server).headers["X-Elastic-Queue-Depth"])
    assert seen.count("0") >= 15  # a busy machine may let a probe time out


@pytest.mark.slow
def test_without_a_key_it_answers_all_the_same_and_warns_once(mini):
    with TorchServe({"mini": mini}, token_auth=True, handler={"management_key_file": None}) as server:
        replies = [ask(server) for _ in range(20)]
        calm = []
        for _ in range(5):
            time.sleep(0.1)
            calm.append(ask(server))
        assert server.logs().count("management API at") == 1
    assert {reply.status_code for reply in replies + calm} == {200}
    assert {reply.headers["X-Elastic-Queue-Depth"] for reply in calm} == {"0"}  # an idle worker has no queue
