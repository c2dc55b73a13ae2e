"""Rushes while something is broken: every request gets an answer or a status, and all is well afterwards."""

import time

import pytest
from archives import archive, servable
from driving import MEANS_MS, QUERIES, ask, max_diff, rush

from elasticlm.benchmarks.server import TorchServe
from elasticlm.benchmarks.stress_run import FAULTS, SlowProxy, settings_of

pytestmark = [pytest.mark.end_to_end, pytest.mark.slow]

SCHEDULE = {"latency_budget_ms": 200, "policy": "deadline", "correct_table": False}


@pytest.fixture(scope="module")
def packed(tiny_artifact, tmp_path_factory):
    folder = tmp_path_factory.mktemp("faults")
    return archive("mini", servable(tiny_artifact, folder / "artifact", MEANS_MS), folder, **SCHEDULE)


@pytest.mark.parametrize("name", FAULTS)
def test_a_rush_is_served_whatever_is_broken(packed, model, name):
    fault = FAULTS[name]
    with (
        settings_of(fault) as handler,
        TorchServe({"mini": packed}, handler=handler, token_auth=fault.token_auth) as server,
    ):
        SlowProxy.target = server.management_url
        with fault.during(server, "mini"):
            _serve(server, model, fault)


def _serve(server, model, fault):
    def headers():
        return server.headers() | {"X-Request-Start": f"t={time.time() - fault.start_offset_s:.6f}"}

    def ask_calmly():
        time.sleep(0.1)
        return ask(server, "mini", {"text": "ice"}, **headers())

    calm = [ask_calmly() for _ in range(5)]
    assert {reply.status_code for reply in calm} == {200}
    assert calm[-1].json()["level"] == 100
    texts = QUERIES * 4
    replies = rush(server, "mini", [{"text": text} for text in texts], headers=headers)
    assert {reply.status_code for reply in replies} <= {200, 504}
    answered = [(reply, text) for reply, text in zip(replies, texts, strict=True) if reply.ok]
    assert answered
    if fault is not FAULTS["half-speed"]:  # which also wakes up the workers that rush() has stopped: there is no queue
        assert {reply.json()["level"] for reply, _ in answered} & {50, 10}, "the level did not fall"
    for reply, text in answered:
        assert max_diff(reply.json()["embedding"], model.embed([text], level=reply.json()["level"])[0]) < 1e-5
    deadline_s = time.monotonic() + 5
    while ask_calmly().json()["level"] != 100:
        assert time.monotonic() < deadline_s, "the largest level did not come back"
