"""What passes between a server and the serving core: requests and responses as bytes. Needs nothing else."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus


@dataclass(frozen=True)
class RawRequest:
    """A request as a server received it: the bytes of its body, and its headers in any case."""

    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Response:
    """A response as a server sends it: status, headers with Content-Type, and the bytes of the body."""

    status: HTTPStatus
    headers: Mapping[str, str]
    body: bytes
