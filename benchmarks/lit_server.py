"""Serve one level of an artifact with LitServe, as a static model: the peer that `elasticlm servers` compares with."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil
import requests

from elasticlm.benchmarks.server import ServerError, free_ports


class LitServer:
    """A LitServe of its own on a free loopback port; it has the interface of elasticlm.benchmarks.server.TorchServe.

    Args:
        artifact: artifact folder; its largest level is served.
        name: under which it answers `POST /predictions/NAME`.
        setup: backend, precision and threads, as ElasticModel.from_pretrained takes them.
    """

    def __init__(self, artifact: Path, name: str, setup: Mapping[str, Any], *, ready_timeout_s: float = 120) -> None:
        self.artifact, self.name, self.setup, self.ready_timeout_s = artifact, name, setup, ready_timeout_s
        self.process: subprocess.Popen | None = None

    def __enter__(self) -> "LitServer":
        (port,) = free_ports(1)
        self.inference_url = f"http://127.0.0.1:{port}"
        options = [str(self.artifact), self.name, str(port), *(f"{key}={value}" for key, value in self.setup.items())]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "elasticlm.benchmarks.lit_app", *options], start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        deadline = time.monotonic() + self.ready_timeout_s
        while time.monotonic() < deadline and self.process.poll() is None:
            with contextlib.suppress(requests.RequestException):
                if requests.get(f"{self.inference_url}/health", timeout=5).ok:
                    return self
            time.sleep(0.2)
        self.stop()
        raise ServerError("LitServe did not start")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """End the processes."""
        if self.process is not None:
            for pid in reversed(self.pids()):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.process.wait()
            self.process = None

    def pids(self) -> list[int]:
        """Return the ids of all processes of the server."""
        assert self.process is not None, "the server is not running"
        with contextlib.suppress(psutil.NoSuchProcess):
            return [self.process.pid, *(each.pid for each in psutil.Process(self.process.pid).children(recursive=True))]
        return []

    def workers(self, name: str) -> list[dict]:
        """Return []: LitServe does not say which of its processes are workers."""
        return []

    def headers(self, kind: str = "inference") -> dict[str, str]:
        """Return {}: there is no token."""
        return {}

    def token(self, kind: str = "inference") -> None:
        """Return None: there is no token."""
