"""Translate the APIs that clients of other embedding servers speak into our wire format, and the responses back.

| API | routes | documented by |
| --- | --- | --- |
| OpenAI | POST /v1/embeddings | platform.openai.com, API reference, "Create embeddings" |
| Jina, Cohere | POST /v1/rerank, POST /v2/rerank | jina.ai/reranker; docs.cohere.com, "Rerank API" |
| text-embeddings-inference (TEI) | POST /embed, POST /rerank | huggingface.github.io/text-embeddings-inference |

A field that would change the result and is not supported is refused; other unknown fields, such as `user`, are ignored,
because clients send many. What a request contains is checked by the core, as in our own wire format.
"""

import base64
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import numpy as np
import orjson

from elasticlm.serving.requests import BINARY, JSON, TOO_LARGE, RequestError, read_json
from elasticlm.serving.wire import RawRequest, Response

KINDS = {
    "query": "query", "search_query": "query", "retrieval.query": "query",
    "passage": "passage", "document": "passage", "search_document": "passage", "retrieval.passage": "passage",
}  # fmt: skip
"""What clients call the two sides of a search: Cohere's input_type, Jina's task, and plain names."""
Json = Mapping[str, Any]


@dataclass(frozen=True)
class Call:
    """A translated request.

    Attributes:
        model: name of the archive that the client asks for; None: the only one that can answer.
        task: the task that this archive needs to have.
        request: in our wire format.
        rows: its sequences.
        headers: added to the client's own.
        answer: returns the body for the client, from the response of the core and the name of the archive.
        field: what the client calls the field that holds the texts; ours are "texts" and "passages".
    """

    model: str | None
    task: str
    request: Json
    rows: int
    answer: Callable[[Response, str], Any]
    field: str
    headers: Json

    def raw(self, headers: Mapping[str, str]) -> RawRequest:
        """Return the request for the core, with the client's headers."""
        return RawRequest(json.dumps(self.request).encode(), {**headers, **self.headers})


@dataclass(frozen=True)
class Api:
    """An API: how its requests are read, and how its errors look.

    Attributes:
        read: returns the call that a JSON object describes; raises RequestError.
        error: returns the body of an error, from its status, code and message.
    """

    read: Callable[[Json], Call]
    error: Callable[[int, str, str], Any]

    def call(self, body: bytes, largest: int) -> Call:
        """Return the call that a body of at most ``largest`` bytes describes. Raises RequestError."""
        value = read_json(body, largest)
        if not isinstance(value, dict):
            raise RequestError("bad_request", "expected a JSON object")
        return self.read(value)

    def respond(self, call: Call, response: Response, name: str) -> Response:
        """Return the response for the client, which the archive of this name has given."""
        if response.status != HTTPStatus.OK:
            error = json.loads(response.body)["error"]
            ours = next(name for name in ("texts", "passages") if name in call.request)
            return self.refuse(response.status, error["code"], error["message"].replace(ours, call.field), response)
        try:
            body = call.answer(response, name)
        except RequestError as error:
            return self.refuse(HTTPStatus(error.status), error.code, error.message, response)
        return Response(HTTPStatus.OK, _headers(response), orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY))

    def refuse(self, status: HTTPStatus, code: str, message: str, response: Response | None = None) -> Response:
        """Return an error in the form of this API."""
        headers = _headers(response) if response else {"Content-Type": JSON}
        return Response(status, headers, json.dumps(self.error(status, code, message)).encode())


def _headers(response: Response) -> dict[str, str]:
    return {**response.headers, "Content-Type": JSON}


# -- Embeddings --------------------------------------------------------------------------------------------------------


def _openai_embeddings(value: Json) -> Call:
    texts = _texts(value, "input")
    encoding = value.get("encoding_format") or "float"
    if encoding not in ("float", "base64"):
        raise RequestError("bad_value", f"encoding_format is {encoding!r}, expected 'float' or 'base64'")
    dimensions = value.get("dimensions")

    def answer(response: Response, name: str) -> Json:
        vectors = _vectors(response, len(texts))
        if dimensions not in (None, vectors.shape[1]):
            message = f"dimensions is {dimensions}, but the vectors of this model have {vectors.shape[1]}, always"
            raise RequestError("bad_value", message)
        encoded = vectors if encoding == "float" else [base64.b64encode(row.tobytes()).decode() for row in vectors]
        items = [{"object": "embedding", "index": i, "embedding": each} for i, each in enumerate(encoded)]
        return {"object": "list", "model": name, "data": items, "usage": _usage(response), **_level(response)}

    return _embedding(_model(value), value, texts, answer, "input")


def _tei_embed(value: Json) -> Call:
    texts = _texts(value, "inputs")
    if value.get("normalize") is False:
        message = "normalize is false, but the model's own settings say whether vectors are normalized: leave it out"
        raise RequestError("bad_value", message)

    def answer(response: Response, name: str) -> np.ndarray:
        _refuse_truncated(value, response, "inputs")
        return _vectors(response, len(texts))

    return _embedding(None, value, texts, answer, "inputs")


def _embedding(model: str | None, value: Json, texts: Sequence[str], answer: Callable[[Response, str], Any],
               field: str) -> Call:  # fmt: skip
    names = [name for name in ("input_type", "task", "prompt_name") if value.get(name) is not None]
    kind = value[names[0]] if names else "query"
    if not isinstance(kind, str) or kind not in KINDS:
        raise RequestError("bad_value", f"{names[0]} is {kind!r}, expected one of {', '.join(KINDS)}")
    request = {"texts": texts, "as": KINDS[kind]}
    return Call(model, "embed", request, _rows(texts), answer, field, {"accept": BINARY})


def _texts(value: Json, field: str) -> Any:
    """Return the texts of a request as a list, as far as it is one. Raises RequestError for token ids."""
    given = _required(value, field)
    if isinstance(given, str):
        return [given]
    first = given[0] if isinstance(given, list) and given else None
    if isinstance(first, int | list) and not isinstance(first, bool):
        raise RequestError(
            "token_ids",
            f"{field} holds token ids, but tokenizers differ between models: send strings "
            "(LangChain: OpenAIEmbeddings(check_embedding_ctx_length=False))",
        )
    return given


def _vectors(response: Response, rows: int) -> np.ndarray:
    return np.frombuffer(response.body, "<f4").reshape(rows, -1)


# -- Reranking ---------------------------------------------------------------------------------------------------------


def _jina_rerank(value: Json) -> Call:
    documents = _required(value, "documents")
    fields = [_document(each) for each in documents] if isinstance(documents, list) else documents
    top = value.get("top_n")
    if top is not None and (type(top) is not int or top < 1):
        raise RequestError("bad_value", f"top_n is {top!r}, expected a whole number of 1 or more")

    def answer(response: Response, name: str) -> Json:
        results = [{"index": i, "relevance_score": score}
                   | ({"document": {"text": fields[i]}} if value.get("return_documents") else {})
                   for i, score in _ranked(response, raw=False)[:top]]  # fmt: skip
        usage = _usage(response)
        meta = {"api_version": {"version": "2"}, "billed_units": {"search_units": 1}}
        return {"id": "rerank", "object": "list", "model": name, "results": results, "usage": usage, "meta": meta,
                **_level(response)}  # fmt: skip

    return _scoring(_model(value), value, fields, answer, "documents")


def _tei_rerank(value: Json) -> Call:
    texts = _required(value, "texts")

    def answer(response: Response, name: str) -> list[Json]:
        _refuse_truncated(value, response, "texts")
        return [{"index": i, "score": score} | ({"text": texts[i]} if value.get("return_text") else {})
                for i, score in _ranked(response, raw=bool(value.get("raw_scores")))]  # fmt: skip

    return _scoring(None, value, texts, answer, "texts")


def _scoring(model: str | None, value: Json, passages: Any, answer: Callable[[Response, str], Any], field: str) -> Call:
    request = {"query": _required(value, "query"), "passages": passages}
    return Call(model, "score", request, _rows(passages), answer, field, {"accept": JSON})


def _document(document: Any) -> Any:
    """Return the text of a document: a string, or an object with the field `text`."""
    return document["text"] if isinstance(document, dict) and "text" in document else document


def _ranked(response: Response, *, raw: bool) -> list[tuple[int, float]]:
    """Return (index, score) of every passage, best first.

    Scores are between 0 and 1 unless `raw`: the calibrated probabilities if the archive has them, otherwise the sigmoid
    of the model's score.
    """
    body = json.loads(response.body)
    scores = body["scores"] if raw else body.get("probabilities") or [_sigmoid(score) for score in body["scores"]]
    order = sorted(range(len(scores)), key=lambda i: -body["scores"][i])
    return [(i, scores[i]) for i in order]


def _sigmoid(score: float) -> float:
    return 1 / (1 + math.exp(-score)) if score >= 0 else math.exp(score) / (1 + math.exp(score))


# -- Common to several -------------------------------------------------------------------------------------------------


def _model(value: Json) -> str | None:
    model = value.get("model")
    if model is not None and not isinstance(model, str):
        raise RequestError("wrong_type", "model is not a string")
    return model


def _rows(texts: Any) -> int:
    """Return the number of texts; 1 for what the core will refuse."""
    return max(1, len(texts)) if isinstance(texts, list) else 1


def _required(value: Json, field: str) -> Any:
    if field not in value:
        raise RequestError("missing_field", f"field {field!r} is missing")
    return value[field]


def _refuse_truncated(value: Json, response: Response, field: str) -> None:
    """Raise RequestError if a text was truncated and the client has asked for an error in this case."""
    if value.get("truncate") is not False:
        return
    truncated = "X-Elastic-Truncated" in response.headers
    if not truncated and response.headers["Content-Type"] == JSON:
        truncated = json.loads(response.body).get("truncated", False)
    if truncated:
        message = f"{field}: a text is longer than the model's limit, and truncate is false"
        raise RequestError("too_long", message, TOO_LARGE)


def _usage(response: Response) -> Json:
    tokens = int(response.headers.get("X-Elastic-Tokens", 0))
    return {"prompt_tokens": tokens, "total_tokens": tokens}


def _level(response: Response) -> Json:
    return {"level": json.loads(response.headers["X-Elastic-Level"])}


def _openai_error(status: int, code: str, message: str) -> Json:
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def _jina_error(status: int, code: str, message: str) -> Json:
    return {"message": message, "detail": message, "code": code}


def _tei_error(status: int, code: str, message: str) -> Json:
    kind = {422: "tokenizer", 413: "validation", 400: "validation", 404: "validation", 503: "overloaded"}
    return {"error": message, "error_type": kind.get(status, "backend"), "code": code}


OPENAI = Api(_openai_embeddings, _openai_error)
RERANK = Api(_jina_rerank, _jina_error)
APIS = {
    "/v1/embeddings": OPENAI,
    "/v1/rerank": RERANK,
    "/v2/rerank": RERANK,
    "/embed": Api(_tei_embed, _tei_error),
    "/rerank": Api(_tei_rerank, _tei_error),
}
"""The APIs by route."""
