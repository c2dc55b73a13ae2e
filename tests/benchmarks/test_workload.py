"""Workloads: which requests are sent, and what an answer is worth."""

import json
from dataclasses import replace

import numpy as np
import pytest

from elasticlm.benchmarks.workload import build_workload, shortener
from elasticlm.errors import InputError
from elasticlm.retrieval.data_specs import RetrievalData
from elasticlm.retrieval.passage_index import PassageIndex


def retrieval_data(titles):
    ids = [f"p{i}" for i in range(len(titles))]
    passages = [f"{title} text {i}".strip() for i, title in enumerate(titles)]
    return RetrievalData(
        spec="made", split="test", passage_ids=ids, titles=titles, passages=passages, query_ids=["a", "b"],
        queries=["first", "second"], qrels={"a": {"p0": 1}, "b": {"p2": 1}},
    )  # fmt: skip


def workload(name, data, *, hits):
    return build_workload(name, data, hits=hits, shorten=lambda text: text[:10])


def test_texts_are_cut_to_a_length_and_shorter_ones_left_out(tiny_artifact):
    long, short = "the river and the rain " * 5, "the river"
    every, equal = shortener(tiny_artifact, None), shortener(tiny_artifact, 8)
    assert (every(long), every(short)) == (long.strip(), short)
    assert equal(short) is None
    assert equal(long) == "the river and the rain the"  # 6 tokens, [CLS] and [SEP]


def hits(*passage_ids):
    return json.dumps({"hits": [{"id": pid, "score": -i} for i, pid in enumerate(passage_ids)], "level": 50}).encode()


def embedding(vector):
    return json.dumps({"embedding": [float(x) for x in vector], "level": 50}).encode()


def unit_index(count, dim=60):
    return PassageIndex.build(np.eye(count, dim), [f"p{i}" for i in range(count)], fingerprint=None, corpus_sha256=None)


@pytest.mark.parametrize(
    ("with_hits", "body"), [(True, {"query": "first", "k": 10}), (False, {"text": "first", "as": "query"})]
)
def test_query_sends_the_splits_queries_and_judges_by_reciprocal_rank(with_hits, body):
    made = workload("query", retrieval_data(["t"] * 20), hits=with_hits)
    assert made.measure == "RR@10"
    assert [request.query_id for request in made.requests] == ["a", "b"]
    assert json.loads(made.requests[0].body) == body


def test_a_query_that_stands_in_the_corpus_is_not_its_own_answer():
    data = replace(retrieval_data(["t"] * 20), query_ids=["p1", "b"], qrels={"p1": {"p0": 1}, "b": {"p2": 1}})
    made = workload("query", data, hits=True)
    assert json.loads(made.requests[0].body)["k"] == 11
    assert made.quality(["p1"], [hits("p1", "p0")], None).tolist() == [1]


def test_the_same_query_is_judged_at_each_of_its_answers():
    made = workload("query", retrieval_data(["t"] * 20), hits=True)
    answers = [hits("p0"), hits("p5", "p2"), hits("p1", "p3", "p4", "p0"), hits("p7")]
    assert made.quality(["a", "b", "a", "b"], answers, None).tolist() == [1, 1 / 2, 1 / 4, 0]


def test_embeddings_are_judged_against_the_index():
    made = workload("query", retrieval_data(["t"] * 20), hits=False)
    toward_p0, toward_p3_then_p2 = np.zeros(60), np.zeros(60)
    toward_p0[0], toward_p3_then_p2[[3, 2]] = 1, (1, 0.5)
    answers = [embedding(toward_p0), embedding(toward_p3_then_p2)]
    assert made.quality(["a", "b"], answers, unit_index(20)).tolist() == [1, 1 / 2]


def test_related_sends_passages_whose_title_others_share_cut_short_and_asks_for_one_hit_more():
    titles = ["lone", *["pair"] * 2, *["many"] * 98, *[""] * 5]
    made = workload("related", retrieval_data(titles), hits=True)
    assert made.measure == "nDCG@10"
    assert [request.query_id for request in made.requests] == [f"p{i}" for i in range(1, 101)]
    assert json.loads(made.requests[0].body) == {"query": "pair text ", "k": 11}
    assert made.qrels["p1"] == {"p2": 1}
    assert len(made.qrels["p3"]) == 97


def test_a_related_passage_does_not_count_as_its_own_hit():
    made = workload("related", retrieval_data(["pair"] * 2 + ["many"] * 98), hits=True)
    own_first, other_first = hits("p0", "p1", *[f"p{i}" for i in range(2, 11)]), hits("p1", "p0")
    assert made.quality(["p0", "p0"], [own_first, other_first], None).tolist() == [1, 1]
    ten_others = hits("p0", *[f"p{i}" for i in range(2, 11)], "p1")
    assert made.quality(["p0"], [ten_others], None)[0] == pytest.approx(1 / np.log2(11))
    one_too_deep = hits("p0", *[f"p{i}" for i in range(2, 12)], "p1")
    assert made.quality(["p0"], [one_too_deep], None)[0] == 0


def test_a_related_passages_embedding_finds_ten_others():
    made = workload("related", retrieval_data(["pair"] * 2 + ["many"] * 98), hits=False)
    index = PassageIndex.build(np.eye(100, 100), [f"p{i}" for i in range(100)], fingerprint=None, corpus_sha256=None)
    vector = np.zeros(100)
    vector[[0, *range(2, 11), 1]] = np.linspace(1, 0.1, 11)  # itself, nine others, then the one that is relevant
    assert made.quality(["p0"], [embedding(vector)], index)[0] == pytest.approx(1 / np.log2(11))


def test_related_needs_a_hundred_passages_that_share_a_title():
    with pytest.raises(InputError, match=r"made: 99 passages share a title .* at least 100"):
        workload("related", retrieval_data(["t"] * 99), hits=True)


def test_a_rerank_sends_bm25s_best_and_is_judged_by_the_order_of_the_scores():
    data = retrieval_data(["ice", "snow", "rain"])
    data = replace(data, queries=["ice text", "rain text"])
    made = workload("rerank:2", data, hits=False)
    sent = json.loads(made.requests[1].body)
    assert sent["query"] == "rain text"
    assert [len(sent["passages"]), sent["passages"][0]] == [2, "rain text 2"]
    assert made.lists["b"][0] == "p2"
    answers = [json.dumps({"scores": scores, "level": 50}).encode() for scores in ([2.0, 1.0], [0.5, 3.0])]
    assert made.quality(["b", "b"], answers, None).tolist() == [1, 1 / 2]


def test_an_unknown_workload_is_refused():
    for name in ("queries", "rerank:0", "rerank:x", "rerank:2"):
        with pytest.raises(InputError, match=r"expected one of query, related or rerank:N|N from 1 to 1 passages"):
            workload(name, retrieval_data(["t"]), hits=True)
