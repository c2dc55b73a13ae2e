"""A two-stage archive with the real TorchServe: search, then rerank, by the pair that the queue leaves time for."""

import pytest
from archives import PASSAGES
from driving import QUERIES, ask, ask_idle, rush

from elasticlm.model.elastic_model import ElasticModel

pytestmark = pytest.mark.end_to_end


def test_an_idle_server_answers_in_the_order_of_the_best_pairs_reranker(server, parts):
    reply = ask_idle(server, "two", {"query": QUERIES[0], "k": 3}, level="100+100")
    assert reply.status_code == 200
    assert set(reply.json()) == {"hits", "levels"}
    assert reply.json()["levels"] == {"retriever": 100, "reranker": 100}
    hits = reply.json()["hits"]
    assert [hit["score"] for hit in hits] == sorted((hit["score"] for hit in hits), reverse=True)
    reranker = ElasticModel.from_pretrained(parts / "reranker")
    expected = reranker.score(QUERIES[0], [PASSAGES[hit["id"]] for hit in hits], level=100)
    assert [hit["score"] for hit in hits] == pytest.approx(expected.tolist(), abs=1e-5)


def test_in_a_rush_smaller_pairs_answer_and_name_themselves_then_the_best_comes_back(server):
    sent = [{"query": query, "k": 4} for query in QUERIES * 5]
    replies = [reply for reply in rush(server, "two", sent) if reply.status_code != 504]
    assert len(replies) > 0.5 * len(sent), "late are those alone for which the machine stood still"
    assert {reply.status_code for reply in replies} == {200}
    deep = [reply for reply in replies if int(reply.headers["X-Elastic-Queue-Depth"]) >= 2]
    assert len(deep) > 10, "there was no queue"
    assert {reply.headers["X-Elastic-Level"] for reply in deep} <= {"10+10", "10"}
    for reply in replies:
        levels, hits = reply.json()["levels"], reply.json()["hits"]
        assert "+".join(str(level) for level in levels.values() if level) == reply.headers["X-Elastic-Level"]
        assert len(hits) == 4
        assert [hit["score"] for hit in hits] == sorted((hit["score"] for hit in hits), reverse=True)
    assert (
        ask_idle(server, "two", {"query": QUERIES[0], "k": 1}, level="100+100").headers["X-Elastic-Queue-Depth"] == "0"
    )


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"text": "ice"}, "wrong_task"),
        ({"query": "ice", "passages": ["a"]}, "wrong_task"),
        ({"query": "ice", "k": 5}, "bad_value"),  # four are reranked
    ],
)
def test_what_it_does_not_answer_is_refused(server, body, code):
    reply = ask(server, "two", body)
    assert (reply.status_code, reply.json()["error"]["code"]) == (400, code)
