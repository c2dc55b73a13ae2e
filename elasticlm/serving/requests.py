"""Parse and validate request bodies and headers; an invalid request raises RequestError with an HTTP status.

All functions are pure: they use no server, no model and no clock. A body is one of five requests:

    {"text": "...", "as": "query"|"passage"}      Embed
    {"texts": ["...", ..], "as": ...}             EmbedMany
    {"query": "...", "k": 10}                     Search
    {"query": "...", "passages": ["...", ..]}     Score
    {"sentence1": "...", "sentence2": "..."|null} Classify
"""

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from elasticlm.hints import unknown
from elasticlm.serving.settings import Settings

BAD_REQUEST, NOT_FOUND, NOT_ACCEPTABLE, TOO_LARGE, INTERNAL, UNAVAILABLE, LATE = 400, 404, 406, 413, 500, 503, 504
JSON, BINARY = "application/json", "application/octet-stream"
KINDS = ("query", "passage")
FORMS = (("text", "as"), ("texts", "as"), ("query", "k"), ("query", "passages"), ("sentence1", "sentence2"))
FIELDS = tuple(dict.fromkeys(field for form in FORMS for field in form))
OPTIONAL = {"as", "sentence2"}
BLANK_FROM = 4096
"""A text that has so many characters after its leading spaces, and none of them is visible, is blank."""
EXPECTED = "send exactly one of {text, as}, {texts, as}, {query, k}, {query, passages}, {sentence1, sentence2}"


class RequestError(ValueError):
    """A rejected request: an HTTP status, a code for programs, and a message for people."""

    def __init__(self, code: str, message: str, status: int = BAD_REQUEST) -> None:
        super().__init__(message)
        self.code, self.message, self.status = code, message, status

    def answer(self) -> dict[str, Any]:
        """Return the body of the error response."""
        return {"error": {"code": self.code, "message": self.message}}


@dataclass(frozen=True)
class Embed:
    text: str
    kind: Literal["query", "passage"] = "query"


@dataclass(frozen=True)
class EmbedMany:
    texts: tuple[str, ...]
    kind: Literal["query", "passage"] = "query"


@dataclass(frozen=True)
class Search:
    query: str
    k: int


@dataclass(frozen=True)
class Score:
    query: str
    passages: tuple[str, ...]


@dataclass(frozen=True)
class Classify:
    sentence1: str
    sentence2: str | None = None


Request = Embed | EmbedMany | Search | Score | Classify


@dataclass(frozen=True)
class AcceptedRequest:
    """An accepted request with its age and its latency budget.

    Args:
        age_ms: how long the request has waited already; None if unknown.
        budget_ms: T_i, the latency budget of this request, counted from its arrival.
        binary: whether the client asked for a binary answer (float32 values).
    """

    request: Request
    age_ms: float | None
    budget_ms: float
    binary: bool = False


@dataclass(frozen=True)
class Service:
    """The kinds of requests that an archive can answer.

    Args:
        task: the artifact's task, "embed", "score" or "classify"; or "search" for a two-stage archive.
        encodes_passages: whether the artifact's largest level is what encodes its passages.
        has_index: whether the archive contains an index to search.
    """

    task: str
    encodes_passages: bool = False
    has_index: bool = False


def accept(
    body: bytes, headers: Mapping[str, str], age_ms: float | None, settings: Settings, service: Service
) -> AcceptedRequest:
    """Return a request as an accepted one; raises RequestError.

    Args:
        body: the body as received.
        headers: the headers of the request, with names in lower case.
        age_ms: how long the request has waited.
    """
    request = parse(read_json(body, settings.max_body_bytes), settings)
    refuse_unserved(request, service, settings)
    header = headers.get("x-latency-budget-ms") if settings.trust_latency_budget else None
    budget_ms = latency_budget_ms(header, settings.budget_ms)
    return AcceptedRequest(request, age_ms, budget_ms, wants_binary(headers.get("accept"), request))


def rows_of(request: Request) -> int:
    """Return the number of sequences that a request adds to a batch."""
    match request:
        case Score(passages=texts) | EmbedMany(texts=texts):
            return len(texts)
        case _:
            return 1


def wants_binary(accept: str | None, request: Request) -> bool:
    """Return whether the Accept header asks for a binary answer. Raises RequestError if the request has none.

    If the client accepts both JSON and binary, the answer is JSON.
    """
    types = {part.partition(";")[0].strip().lower() for part in (accept or "").split(",")}
    if BINARY not in types or types & {JSON, "application/*", "*/*"}:
        return False
    if not isinstance(request, Embed | EmbedMany | Score):
        raise RequestError(
            "not_acceptable", f"only embeddings and scores are available as {BINARY}: accept {JSON}", NOT_ACCEPTABLE
        )
    return True


def read_json(body: bytes, largest: int) -> Any:
    """Return the JSON value of a body. Raises RequestError if it is none, or has more than ``largest`` bytes."""
    if not body:
        raise RequestError("no_body", "expected a JSON body, with Content-Type: application/json")
    if len(body) > largest:
        raise RequestError("too_large", f"body of {len(body)} bytes; setting max_body_bytes is {largest}", TOO_LARGE)
    try:
        return json.loads(body.decode("utf-8"), object_pairs_hook=_without_duplicates)
    except RequestError:
        raise
    except RecursionError:
        raise RequestError("bad_json", "body is nested too deeply") from None
    except ValueError as error:
        raise RequestError("bad_json", f"body is not JSON in UTF-8: {error}") from None


def _without_duplicates(fields: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the fields of an object. Raises RequestError if two have the same name: which one counts is undefined."""
    value = dict(fields)
    if len(value) < len(fields):
        twice, times = Counter(name for name, _ in fields).most_common(1)[0]
        raise RequestError("duplicate_field", f"field {twice[:80]!r} occurs {times} times")
    return value


def parse(value: Any, settings: Settings) -> Request:
    """Return the request that a JSON value describes. Raises RequestError if the value is not a valid request."""
    if not isinstance(value, dict):
        raise RequestError("bad_request", f"expected a JSON object, found {_json_type(value)}: {EXPECTED}")
    for field in value:
        if field not in FIELDS:
            raise RequestError("unknown_field", unknown("field", field, FIELDS))
    form = _form(set(value))
    if form == ("text", "as"):
        return Embed(_text(value, "text"), _kind(value.get("as", "query")))
    if form == ("texts", "as"):
        texts = _texts(value["texts"], "texts", settings.max_texts, "max_texts")
        return EmbedMany(texts, _kind(value.get("as", "query")))
    if form == ("query", "k"):
        return Search(_text(value, "query"), _k(value["k"], settings))
    if form == ("query", "passages"):
        passages = _texts(value["passages"], "passages", settings.max_passages, "max_passages")
        return Score(_text(value, "query"), passages)
    second = None if value.get("sentence2") is None else _text(value, "sentence2")
    return Classify(_text(value, "sentence1"), second)


def refuse_unserved(request: Request, service: Service, settings: Settings) -> None:
    """Raise RequestError if the archive cannot answer this request."""
    served = {"embed": Embed | EmbedMany | Search, "search": Search, "score": Score, "classify": Classify}[service.task]
    if not isinstance(request, served):
        serves = {"embed": "{text, as}, {texts, as}" + (", {query, k}" if service.has_index else ""),
                  "search": "{query, k}", "score": "{query, passages}",
                  "classify": "{sentence1, sentence2}"}[service.task]  # fmt: skip
        raise RequestError("wrong_task", f"this model's task is {service.task!r}: it answers {serves}")
    if isinstance(request, Search) and not service.has_index:
        raise RequestError(
            "no_index", "this archive has no index: pack it with elasticlm archive --index DIR to answer searches"
        )
    if not (isinstance(request, Embed | EmbedMany) and request.kind == "passage"):
        return
    if not service.encodes_passages:
        raise RequestError(
            "wrong_encoder",
            "passages of this model are encoded by its teacher, not by the model itself: "
            "embed them with `elasticlm index`",
        )
    if settings.passages != "largest":
        raise RequestError(
            "no_passages",
            "this archive does not embed passages, which run at the largest level whatever the load: pack it with "
            "`elasticlm archive --passages largest` (setting passages)",
        )


def latency_budget_ms(header: str | None, setting_ms: float) -> float:
    """Return T_i = min(T, X-Latency-Budget-Ms); raises RequestError unless the header is a number above 0."""
    if header is None:
        return setting_ms
    try:  # float() also reads other scripts' digits, and 1_000
        requested_ms = float(header) if header.isascii() and "_" not in header else math.nan
    except ValueError:
        requested_ms = math.nan
    if not (math.isfinite(requested_ms) and requested_ms > 0):
        raise RequestError("bad_header", f"X-Latency-Budget-Ms is {header[:80]!r}, expected milliseconds above 0")
    return min(setting_ms, requested_ms)


def _form(given: set[str]) -> tuple[str, ...]:
    """Return the request form that has exactly these fields. Raises RequestError if there is none."""
    for form in FORMS:
        if given <= set(form) and set(form) - OPTIONAL <= given:
            return form
    partial = [form for form in FORMS if given and given <= set(form)]
    if partial:
        missing = " or ".join(repr(field) for form in partial for field in form if field not in given | OPTIONAL)
        raise RequestError("missing_field", f"{' and '.join(map(repr, sorted(given)))} without {missing}: {EXPECTED}")
    together = f"fields {', '.join(map(repr, sorted(given)))} do not go together" if given else "empty object"
    raise RequestError("mixed_fields" if given else "missing_field", f"{together}: {EXPECTED}")


def _text(value: Mapping[str, Any], field: str) -> str:
    return _checked_text(value[field], field)


def _checked_text(text: Any, name: str) -> str:
    if not isinstance(text, str):
        raise RequestError("wrong_type", f"{name} is {_json_type(text)}, expected a string")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise RequestError("bad_text", f"{name} contains an unpaired surrogate, which is not a character") from None
    if not any(char.isprintable() for char in text.lstrip()[:BLANK_FROM] if not char.isspace()):
        raise RequestError("empty_text", f"{name} is {'blank' if text else 'empty'}")
    return text


def _kind(kind: Any) -> Literal["query", "passage"]:
    if not isinstance(kind, str):
        raise RequestError("wrong_type", f"as is {_json_type(kind)}, expected 'query' or 'passage'")
    if kind not in KINDS:
        raise RequestError("bad_value", unknown("value of as", kind, KINDS))
    return kind  # type: ignore[return-value]


def _k(k: Any, settings: Settings) -> int:
    if type(k) is not int:
        raise RequestError("wrong_type", f"k is {_json_type(k)}, expected a whole number")
    if not 1 <= k <= settings.max_k:
        raise RequestError("bad_value", f"k is {str(k)[:20]}, expected 1 to {settings.max_k} (setting max_k)")
    return k


def _texts(texts: Any, name: str, most: int, setting: str) -> tuple[str, ...]:
    if not isinstance(texts, list):
        raise RequestError("wrong_type", f"{name} is {_json_type(texts)}, expected a list of strings")
    if not 1 <= len(texts) <= most:
        raise RequestError("bad_value", f"{len(texts)} {name}, expected 1 to {most} (setting {setting})")
    return tuple(_checked_text(text, f"{name}[{i}]") for i, text in enumerate(texts))


def _json_type(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
