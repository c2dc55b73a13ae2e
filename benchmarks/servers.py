"""What a benchmark needs of a server; TorchServe and RayServer both have it."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Protocol

SERVERS = ("torchserve", "ray")
TITLES = {"torchserve": "TorchServe", "ray": "Ray Serve"}


class RunningServer(AbstractContextManager, Protocol):
    """A server of its own, which starts on entering the context."""

    inference_url: str

    def workers(self, name: str) -> list[dict]:
        """Return the workers of a model, each with its process id as ``pid``."""

    def pids(self) -> Sequence[int]:
        """Return the ids of all processes of the server, its workers too."""

    def headers(self, kind: str = "inference") -> dict[str, str]:
        """Return the authorisation header; {} where there are no tokens."""

    def token(self, kind: str = "inference") -> str | None:
        """Return the token; None where there are no tokens."""
