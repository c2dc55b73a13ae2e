"""Requests that ``elasticlm fuzz`` sends: valid, or damaged in one way, with the outcomes that are right for each."""

import codecs
import gzip
import json
import random
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from elasticlm.serving.requests import BINARY, FIELDS, Service
from elasticlm.serving.settings import Settings

ANSWERED = "answered"
PIECES = ("ice", "the river and the rain ", " ", "\n", "\t", "\x00", "\u200b", "é", "e\u0301", "ß", "日本語", "한국어",
          "العربية", "🧊", "👩‍👩‍👧‍👦", "\ufeff", "\u202e", "\U0010ffff", '"', "\\", "'", "{", "]", "%s", "' OR 1=1 --",
          "a" * 50, "!" * 50)  # fmt: skip
WRONG_TYPES: tuple[Any, ...] = (0, -1, 1.5, 1e308, True, False, [], {}, [[]], {"text": "a"}, [None], [1], [["a"]])
FORMS: tuple[dict[str, Any], ...] = (
    {"text": "a"},
    {"texts": ["a"]},
    {"query": "a", "k": 1},
    {"query": "a", "passages": ["a"]},
    {"sentence1": "a"},
)


@dataclass(frozen=True)
class Case:
    """A request and what may come of it.

    Attributes:
        kind: how it was made.
        allowed: error codes that are right for it, or ANSWERED for an answer; empty: an answer, or any 4xx.
    """

    kind: str
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    allowed: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Wire:
    """Makes requests for one archive.

    Args:
        service: what the archive answers.
        settings: its limits.
    """

    service: Service
    settings: Settings
    draw: random.Random

    def text(self, longest: int = 12) -> str:
        """Return a text that is not blank, of odd pieces."""
        return "".join(self.draw.choices(PIECES, k=self.draw.randint(0, longest))) + "a"

    def valid(self) -> dict[str, Any]:
        """Return the fields of a request that the archive answers."""
        task, draw = self.service.task, self.draw
        if task == "search" or (self.service.has_index and draw.random() < 0.3):
            return {"query": self.text(), "k": draw.randint(1, min(10, self.settings.max_k))}
        if task == "score":
            most = min(3, self.settings.max_passages)
            return {"query": self.text(), "passages": [self.text() for _ in range(draw.randint(1, most))]}
        if task == "classify":
            return {"sentence1": self.text(), "sentence2": draw.choice([None, self.text()])}
        if draw.random() < 0.3:
            return {"texts": [self.text() for _ in range(draw.randint(1, min(3, self.settings.max_texts)))]}
        return {"text": self.text()} | draw.choice([{}, {"as": "query"}])

    def encoded(self, value: Any) -> bytes:
        """Return JSON in one of its many spellings."""
        indent, escaped = self.draw.choice([None, None, 0, 2]), self.draw.random() < 0.5
        return json.dumps(value, ensure_ascii=escaped, indent=indent).encode("utf-8", "surrogatepass")

    def some_field(self, value: Mapping[str, Any]) -> str:
        """Return one of the fields that must be there."""
        return self.draw.choice([name for name in value if name not in ("as", "sentence2")])


Made = tuple[bytes, set[str]] | tuple[bytes, set[str], dict[str, str]]
"""Body, allowed outcomes, and headers."""


def valid(wire: Wire) -> Made:
    return wire.encoded(wire.valid()), {ANSWERED}


def long_text(wire: Wire) -> Made:
    value = wire.valid()
    name = wire.some_field({name: each for name, each in value.items() if isinstance(each, str | list)})
    size = wire.draw.choice([1_000, 10_000, wire.settings.max_body_bytes // 7])
    text = (wire.text() * size)[:size]
    value[name] = [text] if isinstance(value[name], list) else text
    return json.dumps(value).encode(), {ANSWERED, "too_large"}  # escapes can make it too long


def flipped(wire: Wire) -> Made:
    body = bytearray(wire.encoded(wire.valid()))
    for _ in range(wire.draw.randint(1, 8)):
        body[wire.draw.randrange(len(body))] ^= 1 << wire.draw.randrange(8)
    return bytes(body), set()


def spliced(wire: Wire) -> Made:
    left, right = (wire.encoded(wire.valid()) for _ in range(2))
    return left[: wire.draw.randrange(len(left))] + right[wire.draw.randrange(len(right)) :], set()


def cut_off(wire: Wire) -> Made:
    body = wire.encoded(wire.valid())
    return body[: wire.draw.randrange(len(body))], {"bad_json", "no_body"}


def appended(wire: Wire) -> Made:
    tail = wire.draw.choice([b"}", b"{}", b"\x00", b",", b"null", b"\xff", wire.encoded(wire.valid())])
    return wire.encoded(wire.valid()) + tail, {"bad_json"}


def empty(wire: Wire) -> Made:
    return b"", {"no_body"}


def random_bytes(wire: Wire) -> Made:
    return b"\xfe" + wire.draw.randbytes(wire.draw.choice([0, 1, 10, 100, 1000])), {"bad_json"}


def other_encodings(wire: Wire) -> Made:
    text = json.dumps({"text": "é " + wire.text()}, ensure_ascii=False)
    body = wire.draw.choice([
        codecs.BOM_UTF8 + text.encode(), text.encode("utf-16"), text.encode("utf-16-le"), text.encode("utf-32"),
        text.encode("latin-1", "replace"), b"\xc0\xa2" + text.encode(),
    ])  # fmt: skip
    return body, {"bad_json"}


def compressed(wire: Wire) -> Made:
    body = wire.encoded(wire.valid())
    body = wire.draw.choice([gzip.compress(body, 1), zlib.compress(body, 1), gzip.compress(body, 1)[:12]])
    return body, {"bad_json"}


def no_object(wire: Wire) -> Made:
    value = wire.draw.choice([None, True, 0, -1.5, "text", [], [wire.valid()], "", ["text", "a"]])
    return wire.encoded(value), {"bad_request"}


def nested(wire: Wire) -> Made:
    depth = int(10 ** wire.draw.uniform(0.5, 4.3))
    opening, closing = wire.draw.choice([("[", "]"), ('{"text":', "}"), ('[{"a":', "}]"), ('{"text":[', "]}")])
    body = opening * depth + wire.draw.choice(["", "1"]) + closing * wire.draw.choice([depth, depth, 0])
    return body.encode()[: wire.settings.max_body_bytes], {"bad_json", "bad_request", "wrong_type"}


def numbers(wire: Wire) -> Made:
    number = wire.draw.choice([
        "NaN", "Infinity", "-Infinity", "1e400", "-1e400", "1e-400", "-0", "0.0", "1e99999999999", "9" * 4300,
        "9" * 4301, "1." + "0" * 10_000, "-" + "1" * 60_000, str(2**63), str(-(2**64)), "1e0", "01", "+1", "1_0",
    ])  # fmt: skip
    shape = wire.draw.choice(['{"query":"a","k":%s}', '{"text":%s}', '{"query":"a","passages":[%s]}', '{"texts":%s}'])
    return (shape % number).encode(), {"wrong_type", "bad_value", "bad_json"}


def surrogates(wire: Wire) -> Made:
    value = wire.valid()
    name = wire.some_field({name: each for name, each in value.items() if isinstance(each, str | list)})
    text = wire.text() + chr(wire.draw.randint(0xD800, 0xDFFF))
    value[name] = [text] if isinstance(value[name], list) else text
    if wire.draw.random() < 0.5:
        return json.dumps(value).encode(), {"bad_text"}
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass"), {"bad_json"}


def wrong_types(wire: Wire) -> Made:
    value = wire.valid()
    name = wire.some_field(value)
    kept = type(value[name])
    wrong = [each for each in (*WRONG_TYPES, None, "a") if type(each) is not kept]
    return wire.encoded(value | {name: wire.draw.choice(wrong)}), {"wrong_type"}


def blank(wire: Wire) -> Made:
    value = wire.valid()
    name = wire.some_field({name: each for name, each in value.items() if isinstance(each, str | list)})
    text = wire.draw.choice(["", " ", "\t\n", "\u3000" * 9, "\x00\u200b", "\u00ad", " " * 20_000])
    return wire.encoded(value | {name: [text] if isinstance(value[name], list) else text}), {"empty_text"}


def near_miss(wire: Wire) -> Made:
    value = wire.valid()
    name = wire.some_field(value)
    changed = wire.draw.choice([name.upper(), name + "s", name[:-1], f" {name}", name[::-1], name + "\x00", f"{name}é"])
    if changed in FIELDS or changed in value:
        changed = f"_{name}"
    return wire.encoded({changed if key == name else key: each for key, each in value.items()}), {"unknown_field"}


def missing(wire: Wire) -> Made:
    value = wire.draw.choice([{}, {"k": 1}, {"query": wire.text()}, {"as": "query"}, {"sentence2": wire.text()}])
    return wire.encoded(value), {"missing_field"}


def mixed(wire: Wire) -> Made:
    one, other = wire.draw.sample(FORMS, 2)
    return wire.encoded(one | other), {"mixed_fields"}


def other_task(wire: Wire) -> Made:
    has_k = wire.service.has_index
    served: dict[str, tuple[int, ...]] = {"embed": (0, 1, 2), "search": (2,), "score": (3,), "classify": (4,)}
    form = wire.draw.choice([form for i, form in enumerate(FORMS) if i not in served[wire.service.task]])
    if wire.service.task == "embed" and not has_k and wire.draw.random() < 0.3:
        return wire.encoded(FORMS[2]), {"no_index"}
    return wire.encoded(form), {"wrong_task"}


def duplicates(wire: Wire) -> Made:
    value = wire.valid()
    name = wire.some_field(value)
    spelling = wire.draw.choice([name, "".join(f"\\u{ord(char):04x}" for char in name)])
    body = json.dumps(value)
    return f'{body[:-1]},"{spelling}":{json.dumps(value[name])}}}'.encode(), {"duplicate_field"}


def many_fields(wire: Wire) -> Made:
    count = wire.draw.choice([100, 10_000, wire.settings.max_body_bytes // 12])
    fields = [f'"{i:x}":0' for i in range(count)]
    if wire.draw.random() < 0.5:
        return f"{{{','.join(fields)}}}".encode(), {"unknown_field"}
    return f"{{{','.join([*fields, fields[wire.draw.randrange(count)]])}}}".encode(), {"duplicate_field"}


def long_name(wire: Wire) -> Made:
    name = (wire.draw.choice(["x", "text", "é", "\x00"]) * wire.settings.max_body_bytes)[
        : wire.draw.choice([99, 40_000])
    ]
    return json.dumps({name: 1}).encode()[: wire.settings.max_body_bytes], {"unknown_field"}


def too_many(wire: Wire) -> Made:
    settings = wire.settings
    texts, passages = ["a"] * (settings.max_texts + 1), ["a"] * (settings.max_passages + 1)
    value: dict[str, Any] = wire.draw.choice([
        {"texts": texts}, {"texts": []}, {"query": "a", "passages": passages}, {"query": "a", "passages": []},
        {"query": "a", "k": settings.max_k + 1}, {"query": "a", "k": 0}, {"query": "a", "k": -(10**300)},
        {"text": "a", "as": "passages"}, {"text": "a", "as": "x" * 50_000},
    ])  # fmt: skip
    return json.dumps(value).encode(), {"bad_value"}


def too_large(wire: Wire) -> Made:
    size = wire.settings.max_body_bytes + wire.draw.choice([1, 2, 1000])
    return wire.draw.choice([b"a", b" ", b"\x00", b"["]) * size, {"too_large"}


def budget_headers(wire: Wire) -> Made:
    wrong = ["NaN", "-NaN", "inf", "-1", "0", "-0", "1e400", "1e-400", "", " ", "soon", "0x10", "1_000", "1,5", "1;2",
             "²", "é", "1" * 2000 + "e", "--1", "1e", "250 ms", "'"]  # fmt: skip
    right = ["0.001", "1e-300", "1e300", "5", " 7 ", "+9", "1" * 300, "0.1e2"]
    good = wire.draw.random() < 0.4
    header = wire.draw.choice(right if good else wrong)
    return wire.encoded(wire.valid()), {ANSWERED if good else "bad_header"}, {"X-Latency-Budget-Ms": header}


def start_headers(wire: Wire) -> Made:
    header = wire.draw.choice(["", "t=", "t=0", "t=-1", "NaN", "t=1e9", "9" * 2000, "t=9999999999999999", "é", "1.7e9",
                               "t=1700000000.123", " t=1 ", "t=1,t=2", "0" * 20, "١"])  # fmt: skip
    return wire.encoded(wire.valid()), {ANSWERED}, {"X-Request-Start": header}


def accept_headers(wire: Wire) -> Made:
    header = wire.draw.choice(["", "*/*", "text/html", ";;,,;=", "a" * 3000, "," * 3000, "application/json;q=é",
                               BINARY, BINARY.upper() + ";q=0", f"text/html, {BINARY}", "\x7f"])  # fmt: skip
    return wire.encoded(wire.valid()), {ANSWERED, "not_acceptable"}, {"Accept": header}


def content_types(wire: Wire) -> Made:
    """Not application/x-www-form-urlencoded: TorchServe itself answers 500 if such a body has a bad % escape."""
    header = wire.draw.choice([
        "", "text/plain; charset=utf-16", "application/json; charset=latin-1", "image/png", "é", "a" * 3000,
        "multipart/form-data", "multipart/form-data; boundary=x", "text/event-stream", "application/x-ndjson",
    ])  # fmt: skip
    headers = {"Content-Type": header}
    if wire.draw.random() < 0.5:
        headers["Content-Encoding"] = wire.draw.choice(["gzip", "br", "identity", "x"])
    return wire.encoded(wire.valid()), {ANSWERED, "no_body"}, headers


KINDS: dict[Callable[[Wire], Made], float] = {
    valid: 2, long_text: 0.05, flipped: 8, spliced: 8, cut_off: 8, appended: 4, empty: 1, random_bytes: 4,
    other_encodings: 4, compressed: 2, no_object: 4, nested: 2, numbers: 4, surrogates: 4, wrong_types: 8, blank: 4,
    near_miss: 8, missing: 4, mixed: 4, other_task: 4, duplicates: 4, many_fields: 0.05, long_name: 0.3, too_many: 1,
    too_large: 0.1, budget_headers: 1, start_headers: 0.5, accept_headers: 0.5, content_types: 0.5,
}  # fmt: skip
"""How often each kind is made. Valid requests and large bodies are rare, because they take most of the time."""


def make(wire: Wire) -> Case:
    """Return a request of a random kind."""
    (kind,) = wire.draw.choices(list(KINDS), weights=list(KINDS.values()))
    return made(kind, wire)


def made(kind: Callable[[Wire], Made], wire: Wire) -> Case:
    """Return a request of this kind."""
    body, allowed, *headers = kind(wire)
    return Case(kind.__name__.replace("_", " "), body, headers[0] if headers else {}, frozenset(allowed))
