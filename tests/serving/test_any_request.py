"""Properties of the request parser: whatever comes in, it returns a request or refuses it with a 4xx."""

import json
import time

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from elasticlm.serving.requests import (
    FIELDS,
    AcceptedRequest,
    Classify,
    Embed,
    EmbedMany,
    RequestError,
    Score,
    Search,
    Service,
    accept,
)
from elasticlm.serving.settings import Settings

SETTINGS = Settings(
    latency_budget_ms=250, max_texts=5, max_passages=6, max_k=20, passages="largest", max_body_bytes=4000
)
SERVICES = {task: Service(task, "largest", has_index=True) for task in ("embed", "search", "score", "classify")}
EXAMPLES = hypothesis.settings(derandomize=True, database=None, deadline=None, max_examples=300)

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30).map(lambda text: f"{text}a")
kinds = st.sampled_from(["query", "passage"])
valid = st.one_of(
    texts.map(lambda text: ({"text": text}, Embed(text), "embed")),
    st.tuples(texts, kinds).map(lambda both: ({"text": both[0], "as": both[1]}, Embed(*both), "embed")),
    st.tuples(st.lists(texts, min_size=1, max_size=5), kinds).map(
        lambda both: ({"texts": both[0], "as": both[1]}, EmbedMany(tuple(both[0]), both[1]), "embed")
    ),
    st.tuples(texts, st.integers(1, 20), st.sampled_from(["embed", "search"])).map(
        lambda all_: ({"query": all_[0], "k": all_[1]}, Search(*all_[:2]), all_[2])
    ),
    st.tuples(texts, st.lists(texts, min_size=1, max_size=6)).map(
        lambda both: ({"query": both[0], "passages": both[1]}, Score(both[0], tuple(both[1])), "score")
    ),
    st.tuples(texts, st.none() | texts).map(
        lambda both: ({"sentence1": both[0], "sentence2": both[1]}, Classify(*both), "classify")
    ),
)
"""(value, request, task) of each form of the wire."""
leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.integers().map(str)
names = st.sampled_from([*FIELDS, "", "Text", "txt", "passage", "__class__"]) | st.text(max_size=5)
values = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=4), max_leaves=12
)
"""JSON values, NaN, infinities and unpaired surrogates included, most of them with the fields of requests."""
nearly_valid = st.tuples(valid, st.sampled_from(FIELDS), values).map(lambda all_: all_[0][0] | {all_[1]: all_[2]})
headers = st.dictionaries(
    st.sampled_from(["x-latency-budget-ms", "x-request-start", "accept", "content-type"]),
    st.text(max_size=30) | st.floats().map(str) | st.sampled_from(["1_0", "١٠", "0x10", "application/octet-stream"]),
    max_size=3,
)


def refusal(body, given_headers, service):
    """The refusal of a request, checked; None if it is accepted."""
    try:
        accepted = accept(body, given_headers, None, SETTINGS, service)
    except RequestError as refused:
        error = refused
    else:
        assert isinstance(accepted, AcceptedRequest)
        assert 0 < accepted.budget_ms <= 250
        return None
    assert 400 <= error.status < 500
    answer = json.loads(json.dumps(error.answer()).encode())
    assert set(answer["error"]) == {"code", "message"}
    assert len(answer["error"]["message"]) < 1000
    return error


@EXAMPLES
@given(st.binary(max_size=200), headers, st.sampled_from(list(SERVICES)))
def test_any_bytes_are_refused_or_a_request(body, given_headers, task):
    refusal(body, given_headers, SERVICES[task])


@EXAMPLES
@given(values | nearly_valid, headers, st.booleans(), st.sampled_from(list(SERVICES)))
def test_any_json_is_refused_or_a_request(value, given_headers, escaped, task):
    body = json.dumps(value, ensure_ascii=escaped).encode("utf-8", "surrogatepass")
    refusal(body, given_headers, SERVICES[task])


@EXAMPLES
@given(valid, st.data())
def test_a_damaged_request_is_refused_or_a_request(form, data):
    value, _, task = form
    body = json.dumps(value).encode()
    start = data.draw(st.integers(0, len(body)))
    stop = data.draw(st.integers(start, len(body)))
    refusal(body[:start] + data.draw(st.binary(max_size=10)) + body[stop:], {}, SERVICES[task])
    if start < len(body):
        assert refusal(body[:start], {}, SERVICES[task]).code in ("bad_json", "no_body")


@EXAMPLES
@given(valid, st.booleans(), st.sampled_from([None, 0, 3]), st.randoms(use_true_random=False), headers)
def test_a_request_of_the_wire_format_is_read_as_it_is(form, escaped, indent, random, given_headers):
    value, request, task = form
    fields = list(value.items())
    random.shuffle(fields)
    body = json.dumps(dict(fields), ensure_ascii=escaped, indent=indent).encode()
    assert accept(body, {}, 7.0, SETTINGS, SERVICES[task]) == AcceptedRequest(request, 7.0, 250.0)
    error = refusal(body, given_headers, SERVICES[task])
    assert error is None or error.code in ("bad_header", "not_acceptable")


@EXAMPLES
@given(valid, st.sampled_from(list(SERVICES)))
def test_a_request_for_another_task_is_refused_as_such(form, task):
    value, request, _ = form
    error = refusal(json.dumps(value).encode(), {}, SERVICES[task])
    served = {"embed": (Embed, EmbedMany, Search), "search": Search, "score": Score, "classify": Classify}[task]
    assert (error is None) == isinstance(request, served)
    assert error is None or error.code == "wrong_task"


def test_a_duplicate_among_many_fields_is_found_in_linear_time():
    fields = ",".join(f'"{i}":0' for i in range(20_000))
    started_s = time.process_time()
    body = f'{{{fields},"19999":1,"7":2,"7":3}}'.encode()
    with pytest.raises(RequestError, match="field '7' occurs 3 times"):
        accept(body, {}, None, Settings(latency_budget_ms=250), SERVICES["embed"])
    assert time.process_time() - started_s < 2  # comparing each name with every other took 6 s
