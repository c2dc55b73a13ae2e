"""Encode answers as response bodies: JSON, or float32 values for clients that ask for a binary answer."""

import json

import orjson

from elasticlm.serving.engine import Answer
from elasticlm.serving.requests import BINARY, JSON, RequestError


def encoded(outcome: Answer | RequestError, *, binary: bool = False) -> tuple[bytes, str]:
    """Return the body of an answer or error, and its content type.

    A binary body is little-endian float32: [dim] for an embedding, [texts, dim] for several, [passages] for scores.
    """
    if isinstance(outcome, RequestError):  # json, not orjson: the message may quote unpaired surrogates
        return json.dumps(outcome.answer(), separators=(",", ":")).encode(), JSON
    if binary:
        numbers = next(outcome.body[name] for name in ("embedding", "embeddings", "scores") if name in outcome.body)
        return numbers.astype("<f4", copy=False).tobytes(), BINARY
    return orjson.dumps(outcome.body, option=orjson.OPT_SERIALIZE_NUMPY), JSON
