"""What users send: the same in every arm, and readable from the files that people have."""

import itertools
import json

import pytest

from elasticlm.benchmarks.replay import Replay, Request, read_requests, standard_library_requests, write_requests

REQUESTS = [Request(f"q{i}", json.dumps({"text": f"query {i}", "as": "query"})) for i in range(20)]


def first(replay, user, count):
    return list(itertools.islice(replay.user(user), count))


def test_a_user_sends_the_same_requests_and_pauses_in_every_arm_whatever_the_others_do():
    replay = Replay(REQUESTS, seed=5, pause_s=(1, 3))
    alone = first(replay, 2, 60)
    others = [replay.user(number) for number in (0, 1, 2)]
    interleaved = [[next(user) for user in others][2] for _ in range(60)]
    assert interleaved == alone == first(Replay(REQUESTS, seed=5, pause_s=(1, 3)), 2, 60)


def test_users_and_seeds_differ():
    replay = Replay(REQUESTS, seed=5)
    assert first(replay, 0, 20) != first(replay, 1, 20)
    assert first(replay, 0, 20) != first(Replay(REQUESTS, seed=6), 0, 20)


def test_every_request_comes_once_a_round_and_pauses_stay_in_their_range():
    sent = first(Replay(REQUESTS, pause_s=(1, 3)), 0, 40)
    for once in (sent[:20], sent[20:]):
        assert {request.query_id for request, _ in once} == {request.query_id for request in REQUESTS}
    pauses = [pause_s for _, pause_s in sent]
    assert 1 <= min(pauses) < 1.5
    assert 2.5 < max(pauses) <= 3


def test_requests_survive_their_file(tmp_path):
    requests = [*REQUESTS, Request("ü/1", json.dumps({"query": "schöne Füße", "k": 10}, ensure_ascii=False))]
    write_requests(tmp_path / "requests.jsonl", requests)
    found = read_requests(tmp_path / "requests.jsonl")
    assert [(r.query_id, json.loads(r.body)) for r in found] == [(r.query_id, json.loads(r.body)) for r in requests]


@pytest.mark.parametrize(("k", "body"), [(0, {"text": "why ice", "as": "query"}), (5, {"query": "why ice", "k": 5})])
def test_queries_are_read_from_beir_and_from_plain_text(tmp_path, k, body):
    (tmp_path / "queries.jsonl").write_text('{"_id": "a", "text": "why ice"}\n')
    (tmp_path / "queries.txt").write_text("\nwhy ice\n")
    for name, query_id in (("queries.jsonl", "a"), ("queries.txt", "2")):
        (found,) = read_requests(tmp_path / name, k)
        assert (found.query_id, json.loads(found.body)) == (query_id, body)


def test_the_standard_library_serves_as_queries_where_there_is_no_file():
    texts = {request.query_id: json.loads(request.body)["text"] for request in standard_library_requests()}
    assert len(texts) > 50
    assert "argparse" in texts
    assert all(text.strip() for text in texts.values())
