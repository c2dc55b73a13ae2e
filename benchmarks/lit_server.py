"""Serve one level of an artifact with LitServe, as a static model: the peer that `elasticlm servers` compares with."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import requests

from elasticlm.benchmarks.server import ServerError, free_ports
from elasticlm.benchmarks.servers import OwnServer, process_tree


class LitServer(OwnServer):
    """A LitServe of its own on a free loopback port; it has the interface of elasticlm.benchmarks.server.TorchServe.

    Args:
        artifact: artifact folder; its largest level is served.
        name: under which it answers `POST /predictions/NAME`.
        setup: backend, precision and threads, as ElasticModel.from_pretrained takes them.
    """

    def __init__(self, artifact: Path, name: str, setup: Mapping[str, Any], *, ready_timeout_s: float = 120) -> None:
        self.artifact, self.name, self.setup, self.ready_timeout_s = artifact, name, setup, ready_timeout_s
        self.process: subprocess.Popen | None = None

    def start(self) -> None:
        """Start the server; returns before the model is ready."""
        (port,) = free_ports(1)
        self.inference_url = f"http://127.0.0.1:{port}"
        options = [str(self.artifact), self.name, str(port), *(f"{key}={value}" for key, value in self.setup.items())]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "elasticlm.benchmarks.lit_app", *options], start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def wait_until_ready(self) -> None:
        """Wait until the model is loaded."""
        deadline = time.monotonic() + self.ready_timeout_s
        while time.monotonic() < deadline and self.process and self.process.poll() is None:
            with contextlib.suppress(requests.RequestException):
                if requests.get(f"{self.inference_url}/health", timeout=5).ok:
                    return
            time.sleep(0.2)
        raise ServerError("LitServe did not start")

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
        return [process.pid for process in process_tree(self.process.pid)]

    def workers(self, name: str) -> list[dict]:
        """Return []: LitServe does not say which of its processes are workers."""
        return []
