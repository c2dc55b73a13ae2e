"""What a benchmark needs of a server; TorchServe and RayServer both have it."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Protocol, Self

import psutil

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


class OwnServer(ABC):
    """Starts a server on entering the context, waits until it is ready, and stops it however the context ends."""

    def __enter__(self) -> Self:
        try:
            self.start()
            self.wait_until_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @abstractmethod
    def start(self) -> None:
        """Start the processes."""

    @abstractmethod
    def wait_until_ready(self) -> None:
        """Wait until requests can be answered. Raises ServerError if that takes too long."""

    @abstractmethod
    def stop(self) -> None:
        """End the processes that `start` made."""

    def headers(self, kind: str = "inference") -> dict[str, str]:
        """Return {}: there is no token."""
        return {}

    def token(self, kind: str = "inference") -> str | None:
        """Return None: there is no token."""
        return None


def process_tree(pid: int) -> list[psutil.Process]:
    """Return a process and all that it started; [] if it has ended."""
    try:
        first = psutil.Process(pid)
        return [first, *first.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []
