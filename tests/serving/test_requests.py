"""The wire's way in, as tables: what is accepted, what is refused and how the refusal reads."""

import json
import math
from dataclasses import replace

import pytest

from elasticlm.serving.requests import (
    AcceptedRequest,
    Classify,
    Embed,
    EmbedMany,
    RequestError,
    Score,
    Search,
    Service,
    accept,
    latency_budget_ms,
    parse,
    read_json,
    refuse_unserved,
    rows_of,
    wants_binary,
)
from elasticlm.serving.settings import Settings

SETTINGS = Settings(latency_budget_ms=250, max_texts=2, max_passages=3, max_k=10, max_body_bytes=1000)
PASSAGES_TOO = replace(SETTINGS, passages="largest")


@pytest.mark.parametrize(
    ("value", "request_"),
    [
        ({"text": "ice"}, Embed("ice", "query")),
        ({"text": "ice", "as": "passage"}, Embed("ice", "passage")),
        ({"texts": ["ice", "snow"]}, EmbedMany(("ice", "snow"), "query")),
        ({"texts": ["ice"], "as": "passage"}, EmbedMany(("ice",), "passage")),
        ({"query": "ice", "k": 10}, Search("ice", 10)),
        ({"query": "ice", "passages": ["a", "b"]}, Score("ice", ("a", "b"))),
        ({"sentence1": "ice", "sentence2": "snow"}, Classify("ice", "snow")),
        ({"sentence1": "ice", "sentence2": None}, Classify("ice", None)),
        ({"sentence1": "ice"}, Classify("ice", None)),
        ({"text": " " * 200_000 + "ice"}, Embed(" " * 200_000 + "ice", "query")),
        ({"text": "\x00" * 4000 + "ice"}, Embed("\x00" * 4000 + "ice", "query")),
        ({"text": "🧊 \x00 glacier\n"}, Embed("🧊 \x00 glacier\n", "query")),
    ],
)
def test_each_form_becomes_its_request(value, request_):
    assert parse(value, SETTINGS) == request_


@pytest.mark.parametrize(
    ("value", "code", "says"),
    [
        ([], "bad_request", "found a list"),
        ("ice", "bad_request", "found a string"),
        (None, "bad_request", "found null"),
        ({}, "missing_field", "empty object"),
        ({"txt": "ice"}, "unknown_field", "did you mean 'text'?"),
        ({"Text": "ice"}, "unknown_field", "did you mean 'text'?"),
        ({"zzz": 1}, "unknown_field", "allowed: as, k, passages"),
        ({"query": "ice", "passage": ["a"]}, "unknown_field", "did you mean 'passages'?"),
        ({"query": "ice"}, "missing_field", "'k' or 'passages'"),
        ({"k": 3}, "missing_field", "without 'query'"),
        ({"as": "query"}, "missing_field", "without 'text'"),
        ({"sentence2": "ice"}, "missing_field", "without 'sentence1'"),
        ({"text": "ice", "k": 3}, "mixed_fields", "exactly one of"),
        ({"query": "ice", "k": 3, "passages": ["a"]}, "mixed_fields", "exactly one of"),
        ({"text": "ice", "sentence1": "snow"}, "mixed_fields", "exactly one of"),
        ({"text": 3}, "wrong_type", "text is a number, expected a string"),
        ({"text": None}, "wrong_type", "text is null"),
        ({"texts": "ice"}, "wrong_type", "texts is a string, expected a list"),
        ({"texts": []}, "bad_value", "0 texts, expected 1 to 2 (setting max_texts)"),
        ({"texts": ["a"] * 3}, "bad_value", "3 texts, expected 1 to 2 (setting max_texts)"),
        ({"texts": ["a", None]}, "wrong_type", "texts[1] is null"),
        ({"texts": ["a", " "]}, "empty_text", "texts[1] is blank"),
        ({"texts": ["a"], "text": "a"}, "mixed_fields", "exactly one of"),
        ({"text": ["ice"]}, "wrong_type", "text is a list"),
        ({"text": ""}, "empty_text", "text is empty"),
        ({"text": " \t\n\u3000"}, "empty_text", "text is blank"),
        ({"text": "\x00\u200b"}, "empty_text", "text is blank"),
        ({"text": "\x00" * 5000 + "ice"}, "empty_text", "text is blank"),  # looks no further than this
        ({"text": "\ud800"}, "bad_text", "surrogate"),
        ({"text": "ice", "as": "passages"}, "bad_value", "did you mean 'passage'?"),
        ({"text": "ice", "as": None}, "wrong_type", "as is null"),
        ({"query": "ice", "k": "3"}, "wrong_type", "k is a string"),
        ({"query": "ice", "k": True}, "wrong_type", "k is true or false"),
        ({"query": "ice", "k": 3.0}, "wrong_type", "whole number"),
        ({"query": "ice", "k": 0}, "bad_value", "expected 1 to 10 (setting max_k)"),
        ({"query": "ice", "k": 11}, "bad_value", "setting max_k"),
        ({"query": "ice", "k": 10**4000}, "bad_value", "setting max_k"),
        ({"query": " ", "k": 1}, "empty_text", "query is blank"),
        ({"query": "ice", "passages": "a"}, "wrong_type", "expected a list of strings"),
        ({"query": "ice", "passages": []}, "bad_value", "0 passages"),
        ({"query": "ice", "passages": ["a"] * 4}, "bad_value", "expected 1 to 3 (setting max_passages)"),
        ({"query": "ice", "passages": ["a", ""]}, "empty_text", "passages[1] is empty"),
        ({"query": "ice", "passages": ["a", 1]}, "wrong_type", "passages[1] is a number"),
        ({"sentence1": "ice", "sentence2": ""}, "empty_text", "sentence2 is empty"),
    ],
)
def test_wrong_requests_are_refused_with_what_would_be_right(value, code, says):
    with pytest.raises(RequestError) as error:
        parse(value, SETTINGS)
    assert (error.value.code, error.value.status) == (code, 400)
    assert says in error.value.message
    json.dumps(error.value.answer()).encode()


@pytest.mark.parametrize(
    ("body", "code", "status"),
    [
        (b'{"text": ', "bad_json", 400),
        (b"\xff\xfe", "bad_json", 400),
        (b"[" * 900, "bad_json", 400),
        (b'{"k": ' + b"1" * 900 + b"}", None, None),
        (b'"' + b"x" * 1000, "too_large", 413),
        (b"", "no_body", 400),
        (b'{"text": "a", "text": "b"}', "duplicate_field", 400),
        (b'{"text": {"x": 1, "x": 1}}', "duplicate_field", 400),
    ],
)
def test_bodies_that_are_no_json_are_refused(body, code, status):
    if code is None:
        read_json(body, SETTINGS.max_body_bytes)
        return
    with pytest.raises(RequestError) as error:
        read_json(body, SETTINGS.max_body_bytes)
    assert (error.value.code, error.value.status) == (code, status)


def test_deeply_nested_json_is_refused_not_fatal():
    with pytest.raises(RequestError) as error:
        read_json(b"[" * 100_000, 1 << 18)
    assert error.value.code == "bad_json"


@pytest.mark.parametrize(
    ("request_", "service", "code"),
    [
        (Embed("ice"), Service("embed"), None),
        (Embed("ice", "passage"), Service("embed", encodes_passages=True), None),
        (Embed("ice", "passage"), Service("embed"), "wrong_encoder"),
        (EmbedMany(("ice",)), Service("embed"), None),
        (EmbedMany(("ice",), "passage"), Service("embed"), "wrong_encoder"),
        (EmbedMany(("ice",)), Service("score"), "wrong_task"),
        (Search("ice", 3), Service("embed", has_index=True), None),
        (Search("ice", 3), Service("embed"), "no_index"),
        (Embed("ice"), Service("score"), "wrong_task"),
        (Score("ice", ("a",)), Service("score"), None),
        (Score("ice", ("a",)), Service("embed", has_index=True), "wrong_task"),
        (Classify("ice"), Service("classify"), None),
        (Classify("ice"), Service("score"), "wrong_task"),
    ],
)
def test_what_an_archive_cannot_answer_is_refused(request_, service, code):
    if code is None:
        refuse_unserved(request_, service, PASSAGES_TOO)
        return
    with pytest.raises(RequestError) as error:
        refuse_unserved(request_, service, PASSAGES_TOO)
    assert error.value.code == code


@pytest.mark.parametrize("request_", [Embed("ice", "passage"), EmbedMany(("ice",), "passage")])
def test_passages_are_refused_unless_the_archive_was_packed_for_them(request_):
    with pytest.raises(RequestError, match="--passages largest") as error:
        refuse_unserved(request_, Service("embed", encodes_passages=True), SETTINGS)
    assert (error.value.code, error.value.status) == ("no_passages", 400)
    refuse_unserved(type(request_)(request_.texts if isinstance(request_, EmbedMany) else request_.text),
                    Service("embed", encodes_passages=True), SETTINGS)  # fmt: skip


@pytest.mark.parametrize(
    ("header", "setting_ms", "budget_ms"),
    [(None, 250, 250), ("100", 250, 100), ("99.5", 250, 99.5), ("300", 250, 250), ("300", math.inf, 300)],
)
def test_a_request_may_ask_for_less_time_never_for_more(header, setting_ms, budget_ms):
    assert latency_budget_ms(header, setting_ms) == budget_ms


@pytest.mark.parametrize("header", ["0", "-1", "nan", "inf", "soon", "", "1_000", "١٠٠", "0x10"])
def test_a_budget_that_is_no_time_is_refused(header):
    with pytest.raises(RequestError) as error:
        latency_budget_ms(header, 250)
    assert (error.value.code, error.value.status) == ("bad_header", 400)


def test_a_long_unknown_name_is_refused_quickly():
    with pytest.raises(RequestError, match="unknown field 'xxx") as error:
        parse({"x" * 250_000: 1}, SETTINGS)
    assert len(error.value.message) < 300


def test_a_budget_in_a_header_counts_only_if_clients_are_trusted():
    settings = Settings(latency_budget_ms=250, trust_latency_budget=False)
    for header in ("100", "soon"):
        headers = {"x-latency-budget-ms": header}
        assert accept(b'{"text": "ice"}', headers, 7, settings, Service("embed")).budget_ms == 250


def test_an_accepted_request_knows_its_age_and_its_own_budget():
    settings, service = Settings(latency_budget_ms=250), Service("embed")
    body = b'{"text": "ice"}'
    assert accept(body, {}, 7, settings, service) == AcceptedRequest(Embed("ice"), 7, 250)
    assert accept(body, {"x-latency-budget-ms": "100"}, 7, settings, service) == AcceptedRequest(Embed("ice"), 7, 100)


@pytest.mark.parametrize(
    ("request_", "rows"),
    [(Embed("ice"), 1), (EmbedMany(("a", "b", "c")), 3), (Score("ice", ("a", "b")), 2), (Classify("a"), 1)],
)
def test_a_rerank_has_as_many_rows_as_passages(request_, rows):
    assert rows_of(request_) == rows


@pytest.mark.parametrize(
    ("header", "binary"),
    [
        (None, False),
        ("*/*", False),
        ("application/json", False),
        ("application/octet-stream", True),
        ("Application/Octet-Stream;q=1", True),
        ("text/html, application/octet-stream", True),
        ("application/octet-stream, */*;q=.1", False),
    ],
)
def test_bare_numbers_come_only_where_json_will_not_do(header, binary):
    assert wants_binary(header, Embed("ice")) == binary
    assert wants_binary(header, Score("ice", ("snow",))) == binary


def test_what_has_no_bare_numbers_is_not_acceptable_as_such():
    for request in (Search("ice", 3), Classify("ice")):
        with pytest.raises(RequestError) as refused:
            wants_binary("application/octet-stream", request)
        assert (refused.value.code, refused.value.status) == ("not_acceptable", 406)
