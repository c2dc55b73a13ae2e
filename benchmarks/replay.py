"""What the driver sends: the same requests and pauses for every arm.

The Locust process imports this module; it stays free of torch, so that the driver is light compared with the server.
"""

import json
import pydoc
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Request:
    """One request to `POST /predictions/NAME`: whose answer it asks for, and its JSON body."""

    query_id: str
    body: str


@dataclass(frozen=True)
class Replay:
    """The requests and pauses of every user, by user number alone: arms and runs with one seed see the same traffic.

    >>> replay = Replay([Request("a", "{}"), Request("b", "{}")], seed=1, pause_s=(1, 3))
    >>> [next(replay.user(7))[0].query_id for _ in range(3)] == [next(replay.user(7))[0].query_id] * 3
    True
    """

    requests: Sequence[Request]
    seed: int = 0
    pause_s: tuple[float, float] = (1.0, 3.0)

    def user(self, number: int) -> Iterator[tuple[Request, float]]:
        """Yield user `number`'s requests, each once a round, with the pause in seconds after its answer."""
        random = np.random.default_rng([self.seed, number])
        while True:
            for position in random.permutation(len(self.requests)):
                yield self.requests[position], random.uniform(*self.pause_s)


def write_requests(path: Path, requests: Sequence[Request]) -> None:
    """Write one request per line: {"id", "body"}."""
    lines = (json.dumps({"id": request.query_id, "body": json.loads(request.body)}) for request in requests)
    path.write_text("".join(f"{line}\n" for line in lines))


def read_requests(path: Path, k: int = 0) -> list[Request]:
    """Read requests from a file, a line each.

    Lines are {"id", "body"} as simulations write them, a BEIR set's queries ({"_id", "text"}), or plain text.
    Texts ask for the embedding, or with `k` for the k best passages of the archive's index.
    """
    requests = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        fields = json.loads(line) if path.suffix == ".jsonl" else {"_id": str(number), "text": line.strip()}
        if "body" in fields:
            requests.append(Request(str(fields["id"]), json.dumps(fields["body"])))
        else:
            requests.append(text_request(str(fields["_id"]), fields["text"], k))
    return requests


def text_request(query_id: str, text: str, k: int = 0) -> Request:
    """Return the request for a query's embedding, or with `k` for its hits."""
    body = {"query": text, "k": k} if k else {"text": text, "as": "query"}
    return Request(query_id, json.dumps(body, ensure_ascii=False))


def standard_library_requests(k: int = 0) -> list[Request]:
    """Return queries that need no file: the one-line descriptions of the standard library's modules."""
    folders = [path for path in map(Path, sys.path) if (path / "pydoc.py").is_file()]
    lines = {file.stem: pydoc.synopsis(str(file)) for folder in folders for file in sorted(folder.glob("*.py"))}
    return [text_request(name, line, k) for name, line in lines.items() if line]
