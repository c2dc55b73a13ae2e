"""The APIs of other servers, translated: requests, answers and errors, as tables."""

import base64
import json
import math
from http import HTTPStatus

import numpy as np
import pytest

from elasticlm.serving.client_apis import APIS
from elasticlm.serving.requests import RequestError, parse
from elasticlm.serving.settings import Settings
from elasticlm.serving.wire import Response

SETTINGS = Settings(latency_budget_ms=250)
VECTORS = np.array([[0.6, -0.8], [1.0, 0.0]], "<f4")
HEADERS = {"X-Elastic-Level": "50", "X-Elastic-Tokens": "9", "Content-Type": "application/octet-stream"}
EMBEDDED = Response(HTTPStatus.OK, HEADERS, VECTORS.tobytes())
OPENAI, RERANK, TEI_EMBED, TEI_RERANK = (APIS[path] for path in ("/v1/embeddings", "/v1/rerank", "/embed", "/rerank"))


def scored(**body):
    headers = {"X-Elastic-Level": "100", "X-Elastic-Tokens": "30", "Content-Type": "application/json"}
    return Response(HTTPStatus.OK, headers, json.dumps({"scores": [-1.0, 2.0, 0.5], "level": 100} | body).encode())


def call(api, **value):
    return api.call(json.dumps(value).encode(), 10_000)


def answered(api, response, **value):
    made = api.respond(call(api, **value), response, "mini")
    assert made.headers["Content-Type"] == "application/json"
    return made.status, json.loads(made.body)


@pytest.mark.parametrize(
    ("api", "value", "texts", "kind"),
    [
        (OPENAI, {"input": "ice"}, ["ice"], "query"),
        (OPENAI, {"input": ["ice", "sea"], "user": "me"}, ["ice", "sea"], "query"),
        (OPENAI, {"input": "ice", "input_type": "search_document"}, ["ice"], "passage"),
        (OPENAI, {"input": "ice", "task": "retrieval.passage"}, ["ice"], "passage"),
        (OPENAI, {"input": "ice", "input_type": None}, ["ice"], "query"),
        (TEI_EMBED, {"inputs": "ice", "truncate": True, "normalize": True}, ["ice"], "query"),
        (TEI_EMBED, {"inputs": ["ice"], "prompt_name": "passage"}, ["ice"], "passage"),
    ],
)
def test_requests_for_embeddings(api, value, texts, kind):
    made = call(api, **value)
    assert (made.request, made.rows, made.task) == ({"texts": texts, "as": kind}, len(texts), "embed")
    assert made.raw({"accept": "*/*", "x-latency-budget-ms": "9"}).headers == {
        "accept": "application/octet-stream", "x-latency-budget-ms": "9",
    }  # fmt: skip
    parse(made.request, SETTINGS)


@pytest.mark.parametrize(
    ("api", "value", "code", "says"),
    [
        (OPENAI, {}, "missing_field", "'input'"),
        (OPENAI, {"input": [1, 2]}, "token_ids", "check_embedding_ctx_length=False"),
        (OPENAI, {"input": [[1, 2], [3]]}, "token_ids", "send strings"),
        (OPENAI, {"input": "a", "encoding_format": "int8"}, "bad_value", "'float' or 'base64'"),
        (OPENAI, {"input": "a", "model": 3}, "wrong_type", "model"),
        (OPENAI, {"input": "a", "input_type": "clustering"}, "bad_value", "input_type"),
        (OPENAI, {"input": "a", "input_type": ["query"]}, "bad_value", "input_type"),
        (TEI_EMBED, {"inputs": "a", "normalize": False}, "bad_value", "normalize"),
        (RERANK, {"query": "a"}, "missing_field", "'documents'"),
        (RERANK, {"documents": ["a"]}, "missing_field", "'query'"),
        (RERANK, {"query": "a", "documents": ["a"], "top_n": 0}, "bad_value", "top_n"),
        (RERANK, {"query": "a", "documents": ["a"], "top_n": True}, "bad_value", "top_n"),
        (TEI_RERANK, {"query": "a"}, "missing_field", "'texts'"),
    ],
)
def test_what_is_refused_says_why(api, value, code, says):
    with pytest.raises(RequestError, match=says) as error:
        call(api, **value)
    assert error.value.code == code


@pytest.mark.parametrize("body", [b"[]", b'"a"', b"null", b"{", b"", b'{"input": 1, "input": 2}', b"x" * 10_001])
def test_bodies_that_are_no_object_are_refused(body):
    for api in APIS.values():
        with pytest.raises(RequestError):
            api.call(body, 10_000)


@pytest.mark.parametrize("value", [{"input": []}, {"input": 3}, {"input": [None]}, {"input": ["a", 1]}, {"input": ""},
                                   {"input": {"a": 1}}, {"input": [True]}])  # fmt: skip
def test_what_the_core_refuses_gets_that_far(value):
    with pytest.raises(RequestError):
        parse(call(OPENAI, **value).request, SETTINGS)


@pytest.mark.parametrize("documents", [[], "ice", [{"title": "a"}], [3], None, ["a", {"text": 5}]])
def test_documents_that_the_core_refuses_get_that_far(documents):
    with pytest.raises(RequestError):
        parse(call(RERANK, query="ice", documents=documents).request, SETTINGS)


def test_openai_embeddings():
    status, body = answered(OPENAI, EMBEDDED, input=["ice", "sea"], model="mini")
    assert status == 200
    assert [item["index"] for item in body["data"]] == [0, 1]
    np.testing.assert_array_equal(np.array([item["embedding"] for item in body["data"]], "f4"), VECTORS)
    assert (body["object"], body["model"], body["level"]) == ("list", "mini", 50)
    assert body["usage"] == {"prompt_tokens": 9, "total_tokens": 9}
    _, body = answered(OPENAI, EMBEDDED, input=["ice", "sea"], encoding_format="base64")
    assert base64.b64decode(body["data"][1]["embedding"]) == VECTORS[1].tobytes()


def test_openai_dimensions_are_those_of_the_model():
    assert answered(OPENAI, EMBEDDED, input=["ice", "sea"], dimensions=2)[0] == 200
    status, body = answered(OPENAI, EMBEDDED, input=["ice", "sea"], dimensions=1)
    assert status == 400
    assert "have 2" in body["error"]["message"]


def test_tei_embeddings():
    status, body = answered(TEI_EMBED, EMBEDDED, inputs=["ice", "sea"])
    assert status == 200
    np.testing.assert_array_equal(np.array(body, "f4"), VECTORS)


def test_tei_refuses_a_long_text_only_if_it_may_not_be_truncated():
    long = Response(HTTPStatus.OK, HEADERS | {"X-Elastic-Truncated": "true"}, VECTORS.tobytes())
    assert answered(TEI_EMBED, long, inputs=["a", "b"])[0] == 200
    status, body = answered(TEI_EMBED, long, inputs=["a", "b"], truncate=False)
    assert (status, body["error_type"]) == (413, "validation")
    assert answered(TEI_RERANK, scored(truncated=True), query="a", texts=["b"] * 3, truncate=False)[0] == 413


def test_rerank_is_sorted_and_between_0_and_1():
    status, body = answered(RERANK, scored(), query="a", documents=["x", {"text": "y"}, "z"], return_documents=True)
    assert status == 200
    assert [(each["index"], each["document"]["text"]) for each in body["results"]] == [(1, "y"), (2, "z"), (0, "x")]
    assert [each["relevance_score"] for each in body["results"]] == pytest.approx(
        [1 / (1 + math.exp(-score)) for score in (2.0, 0.5, -1.0)]
    )
    assert (body["level"], body["usage"]["total_tokens"]) == (100, 30)
    _, body = answered(RERANK, scored(), query="a", documents=["x", "y", "z"], top_n=1)
    assert body["results"] == [{"index": 1, "relevance_score": pytest.approx(0.8808, abs=1e-4)}]


def test_calibrated_probabilities_are_used_where_there_are_any():
    _, body = answered(RERANK, scored(probabilities=[0.1, 0.9, 0.4]), query="a", documents=["x", "y", "z"])
    assert [each["relevance_score"] for each in body["results"]] == [0.9, 0.4, 0.1]


def test_tei_rerank():
    _, body = answered(TEI_RERANK, scored(), query="a", texts=["x", "y", "z"], raw_scores=True, return_text=True)
    assert body == [{"index": 1, "score": 2.0, "text": "y"}, {"index": 2, "score": 0.5, "text": "z"},
                    {"index": 0, "score": -1.0, "text": "x"}]  # fmt: skip
    _, body = answered(TEI_RERANK, scored(), query="a", texts=["x", "y", "z"])
    assert body[0] == {"index": 1, "score": pytest.approx(0.8808, abs=1e-4)}


def test_extreme_scores_do_not_overflow():
    _, body = answered(TEI_RERANK, scored(scores=[-1e4, 1e4]), query="a", texts=["x", "y"])
    assert [each["score"] for each in body] == [1.0, 0.0]


@pytest.mark.parametrize(
    ("path", "value", "found"),
    [
        ("/v1/embeddings", {"input": [""]}, lambda body: body["error"]["message"]),
        ("/v1/rerank", {"query": "a", "documents": [""]}, lambda body: body["message"]),
        ("/embed", {"inputs": [""]}, lambda body: body["error"]),
        ("/rerank", {"query": "a", "texts": [""]}, lambda body: body["error"]),
    ],
)
def test_errors_name_the_field_that_the_client_sent(path, value, found):
    ours = next(name for name in ("texts", "passages") if name in call(APIS[path], **value).request)
    error = {"error": {"code": "empty_text", "message": f"{ours}[0] is empty"}}
    response = Response(HTTPStatus.BAD_REQUEST, {"Content-Type": "application/json"}, json.dumps(error).encode())
    status, body = answered(APIS[path], response, **value)
    assert status == 400
    assert found(body) == f"{next(name for name in value if name != 'query')}[0] is empty"
