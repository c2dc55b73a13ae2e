"""The whole path with the real TorchServe: package, start, ask; levels follow the queue; a bad item, a dead worker."""

import os
import time

import numpy as np
import pytest
import requests
from archives import PASSAGES, index_of
from driving import QUERIES, ask, ask_idle, max_diff, rush
from teachers import NAMES, logits

from elasticlm.benchmarks.server import TorchServe

pytestmark = pytest.mark.end_to_end


@pytest.fixture(scope="module")
def batching(archives):
    """Batches of eight, formed for as long as half a second."""
    with TorchServe({"both": archives["both"]}, batch_size=8, max_batch_delay_ms=500) as running:
        yield running


def test_an_idle_server_answers_at_the_largest_level_with_that_levels_vector(server, model):
    reply = ask_idle(server, "search", {"text": "a cold river"})
    assert reply.status_code == 200
    assert reply.headers["content-type"] == "application/json"
    assert (reply.headers["X-Elastic-Level"], reply.headers["X-Elastic-Queue-Depth"]) == ("100", "0")
    assert 0 < float(reply.headers["X-Elastic-Service-Ms"]) < 1000
    assert set(reply.json()) == {"embedding", "level"}
    assert reply.json()["level"] == 100
    assert max_diff(reply.json()["embedding"], model.embed(["a cold river"], level=100)[0]) < 1e-5


def test_search_returns_the_corpus_own_ids_best_first(server, tiny_bert, model):
    reply = ask_idle(server, "search", {"query": "the wolf and the snow", "k": 3})
    assert reply.status_code == 200
    scores, ids = index_of(tiny_bert).search(model.embed(["the wolf and the snow"], level=100).numpy(), 3)
    assert [hit["id"] for hit in reply.json()["hits"]] == ids[0]
    assert [hit["score"] for hit in reply.json()["hits"]] == pytest.approx(scores[0].tolist(), abs=1e-5)
    everything = ask_idle(server, "search", {"query": "the wolf and the snow", "k": 1000}).json()["hits"]
    assert sorted(hit["id"] for hit in everything) == sorted(PASSAGES)


def test_classifiers_of_hugging_face_answer_with_their_own_logits(server, hugging_face):
    """Through load, prune, archive and the wire, at the largest level."""
    query, passages = "a cold river", ["the wolf and the snow", "ice", "rain and wind " * 30]
    replies = [ask_idle(server, "score", {"query": query, "passages": [passage]}).json() for passage in passages]
    expected = logits(hugging_face["score"], [query] * 3, passages)[:, 0]
    assert [reply["scores"][0] for reply in replies] == pytest.approx(expected.tolist(), abs=1e-5)
    found = ask_idle(server, "classify", {"sentence1": query, "sentence2": passages[0]}).json()
    probabilities = logits(hugging_face["classify"], [query], passages[:1]).softmax(-1)[0]
    assert found["scores"] == pytest.approx(dict(zip(NAMES[3], probabilities.tolist(), strict=True)), abs=1e-5)
    assert found["label"] == NAMES[3][probabilities.argmax()]


@pytest.mark.parametrize(
    ("body", "headers", "status", "code"),
    [
        ('{"text": ', {}, 400, "bad_json"),
        ("", {}, 400, "no_body"),
        ("[1]", {}, 400, "bad_request"),
        ('{"txt": "ice"}', {}, 400, "unknown_field"),
        ('{"text": "ice", "k": 3}', {}, 400, "mixed_fields"),
        ('{"text": " "}', {}, 400, "empty_text"),
        ('{"text": "\\ud800"}', {}, 400, "bad_text"),
        ("[" * 10_000, {}, 400, "bad_json"),
        ('{"text": "ice", "as": "passage"}', {}, 400, "wrong_encoder"),
        ('{"query": "ice", "passages": ["a"]}', {}, 400, "wrong_task"),
        ('{"query": "ice", "k": 0}', {}, 400, "bad_value"),
        ('{"query": "ice", "k": 1001}', {}, 400, "bad_value"),
        ('{"text": "ice"}', {"X-Latency-Budget-Ms": "soon"}, 400, "bad_header"),
        ('{"text": "' + "ice " * 70_000 + '"}', {}, 413, "too_large"),
    ],
)
def test_each_mistake_gets_its_status_and_its_code(server, body, headers, status, code):
    url = f"{server.inference_url}/predictions/search"
    reply = requests.post(url, data=body, headers={"Content-Type": "application/json"} | headers, timeout=30)
    assert (reply.status_code, reply.json()["error"]["code"]) == (status, code)
    assert reply.json()["error"]["message"]


def test_odd_but_honest_texts_are_answered(server):
    for text in ("🧊", "ice\x00", "I" * 200_000, "لیلی", "a\u200bb"):
        reply = ask(server, "search", {"text": text})
        assert reply.status_code == 200, reply.text
        assert reply.json().get("truncated", False) is (len(text) > 1000)
    assert ask(server, "search", {"text": "glacier " * 500}).json()["truncated"] is True


def test_late_requests_are_answered_or_rejected_as_the_setting_says(server):
    late = {"X-Request-Start": f"t={time.time() - 1:.6f}"}
    reply = ask(server, "strict", {"text": "ice"}, **late)
    assert (reply.status_code, reply.json()["error"]["code"]) == (504, "late")
    assert ask(server, "strict", {"text": "ice"}).status_code == 200
    assert ask(server, "search", {"text": "ice"}, **late).status_code == 200


def test_an_old_request_and_a_hurried_one_run_at_a_smaller_level(server):
    for _ in range(2):  # an idle worker sees that the clocks agree
        just_now = {"X-Request-Start": f"{(time.time() - 0.002) * 1000:.0f}"}
        ask_idle(server, "search", {"text": "ice"}, **just_now)
        time.sleep(0.1)
    old = {"X-Request-Start": f"{(time.time() - 0.145) * 1000:.0f}"}  # 60 ms do not fit any more
    assert ask(server, "search", {"text": "ice"}, **old).json()["level"] in (50, 10)
    time.sleep(0.1)  # idle, so that nothing is taken to have waited
    assert ask(server, "search", {"text": "ice"}, **{"X-Latency-Budget-Ms": "20"}).json()["level"] == 10
    assert ask_idle(server, "search", {"text": "ice"}, **{"X-Latency-Budget-Ms": "190"}).json()["level"] == 100


def test_the_queue_grows_and_the_level_falls_then_it_drains_and_the_level_rises(server, model):
    replies = rush(server, "search", [{"text": text} for text in QUERIES * 5])
    assert {reply.status_code for reply in replies} == {200}
    deep = [reply for reply in replies if int(reply.headers["X-Elastic-Queue-Depth"]) >= 2]
    assert len(deep) > 10, "there was no queue"
    assert {reply.json()["level"] for reply in deep} == {10}
    for reply, text in zip(replies, QUERIES * 5, strict=True):
        assert max_diff(reply.json()["embedding"], model.embed([text], level=reply.json()["level"])[0]) < 1e-5
    after = [ask_idle(server, "search", {"text": text}) for text in QUERIES]
    assert {reply.headers["X-Elastic-Queue-Depth"] for reply in after} == {"0"}
    assert {reply.json()["level"] for reply in after} == {100}


def test_one_bad_item_in_a_batch_of_eight_harms_nobody_else(batching, model):
    bodies = [{"text": text} for text in QUERIES[:7]]
    bodies.insert(3, {"text": 3})
    replies = rush(batching, "both", bodies)
    assert len({reply.headers["X-Elastic-Service-Ms"] for reply in replies}) == 1, "they were not one batch"
    assert [reply.status_code for reply in replies] == [200] * 3 + [400] + [200] * 4
    assert replies[3].json()["error"]["code"] == "wrong_type"
    level = replies[0].json()["level"]
    vectors = [reply.json()["embedding"] for reply in replies if reply.ok]
    assert max_diff(vectors, model.embed(QUERIES[:7], level=level)) < 1e-5


def test_passages_embedded_in_a_rush_are_those_embedded_idle(batching):
    passages = list(PASSAGES.values())
    idle = [ask(batching, "both", {"text": text, "as": "passage"}).json() for text in passages]
    bodies = [{"text": text, "as": "passage"} for text in passages] + [{"text": text} for text in QUERIES * 4]
    bodies = [bodies[i * 7 % len(bodies)] for i in range(len(bodies))]  # passages among queries
    replies = rush(batching, "both", bodies)
    assert {reply.status_code for reply in replies} == {200}
    queries = [reply.json() for reply, body in zip(replies, bodies, strict=True) if "as" not in body]
    assert min(query["level"] for query in queries) == 10, "there was no rush"
    hurried = {body["text"]: reply.json() for reply, body in zip(replies, bodies, strict=True) if "as" in body}
    assert {reply["level"] for reply in [*idle, *hurried.values()]} == {100}
    for text, one in zip(passages, idle, strict=True):
        assert max_diff(hurried[text]["embedding"], one["embedding"]) < 1e-5


def test_a_killed_worker_comes_back_with_the_same_answers(server, model):
    (worker,) = server.workers("search")
    os.kill(worker["pid"], 9)
    deadline = time.monotonic() + 60
    while (reply := ask(server, "search", {"text": "ice"})).status_code != 200:
        assert reply.status_code in (500, 503, 507)
        assert reply.json()["message"]
        assert time.monotonic() < deadline, reply.text
        time.sleep(0.2)
    assert max_diff(reply.json()["embedding"], model.embed(["ice"], level=reply.json()["level"])[0]) < 1e-5
    assert ask_idle(server, "search", {"text": "ice"}).json()["level"] == 100
    (successor,) = server.workers("search")
    assert successor["pid"] != worker["pid"]
    assert ask(server, "strict", {"text": "ice"}).status_code == 200


def test_onnx_runtime_answers_as_pytorch_does_and_its_levels_follow_the_queue(server, model):
    idle = ask_idle(server, "onnx", {"text": QUERIES[0]})
    assert max_diff(idle.json()["embedding"], model.embed([QUERIES[0]], level=100)[0]) < 1e-5
    replies = [reply.json() for reply in rush(server, "onnx", [{"text": query} for query in QUERIES])]
    assert min(reply["level"] for reply in replies) == 10
    for query, reply in zip(QUERIES, replies, strict=True):
        assert max_diff(reply["embedding"], model.embed([query], level=reply["level"])[0]) < 1e-5


def test_bare_numbers_for_a_client_that_asks_for_them(server, model):
    bare = ask(server, "search", {"text": QUERIES[0]}, Accept="application/octet-stream")
    assert (bare.status_code, bare.headers["Content-Type"]) == (200, "application/octet-stream")
    level = int(bare.headers["X-Elastic-Level"])
    assert max_diff(np.frombuffer(bare.content, "<f4").copy(), model.embed([QUERIES[0]], level=level)[0]) < 1e-5
    long = ask(server, "search", {"text": "ice " * 100}, Accept="application/octet-stream")
    assert long.headers["X-Elastic-Truncated"] == "true"
    hits = ask(server, "search", {"query": "ice", "k": 1}, Accept="application/octet-stream")
    assert (hits.status_code, hits.json()["error"]["code"]) == (406, "not_acceptable")
