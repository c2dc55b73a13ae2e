"""From answers to the bytes on the wire: JSON, or bare numbers for a client that asks for them."""

import json

import orjson

from elasticlm.serving.engine import Answer
from elasticlm.serving.requests import BINARY, JSON, RequestError


def encoded(outcome: Answer | RequestError, *, binary: bool = False) -> tuple[bytes, str]:
    """Return an answer's body and its content type.

    Binary: float32, little-endian, [dim] of an embedding, [passages] of scores.
    """
    if isinstance(outcome, RequestError):  # it may quote what was sent, half characters included
        return json.dumps(outcome.answer(), separators=(",", ":")).encode(), JSON
    if binary:
        numbers = outcome.body["embedding"] if "embedding" in outcome.body else outcome.body["scores"]
        return numbers.astype("<f4", copy=False).tobytes(), BINARY
    return orjson.dumps(outcome.body, option=orjson.OPT_SERIALIZE_NUMPY), JSON
