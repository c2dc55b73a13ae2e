"""Start and stop a private Ray cluster with Ray Serve, with everything that it writes in one place."""

import contextlib
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil
import requests
import yaml

from elasticlm.benchmarks.server import ServerError, free_ports
from elasticlm.benchmarks.servers import OwnServer, process_tree

NODE_CPUS = 2
"""What each node offers to Ray. It is a number for placing replicas, not a limit."""
APPLICATION = "elasticlm"
LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
"""With this, Ray listens on loopback alone, as on those systems; it then has one node."""
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "disabled",
    "RAY_SERVE_LOG_TO_STDERR": "1",
    "RAY_DEDUP_LOGS": "0",
}


class RayServer(OwnServer):
    """A Ray cluster of its own that serves archives; it has the interface of elasticlm.benchmarks.server.TorchServe.

    >>> with RayServer(["model_store/mini.mar"]) as server:  # doctest: +SKIP
    ...     requests.post(f"{server.inference_url}/predictions/mini", json={"text": "hello"})

    Parameters
    ----------
    archives: the archives, packed or unpacked.
    arguments: further arguments of elasticlm.handlers.ray_app.build.
    nodes: Ray nodes, all of them on this machine. One is the head, which receives all requests.
    env: further environment variables of Ray's processes.
    ready_timeout_s: how long everything may take to start on entering the context.
    """

    def __init__(
        self,
        archives: list[Path | str],
        *,
        arguments: Mapping[str, object] | None = None,
        nodes: int = 1,
        env: Mapping[str, str] | None = None,
        ready_timeout_s: float = 180,
    ) -> None:
        self.arguments = {"archive": [str(Path(path).resolve()) for path in archives], **(arguments or {})}
        self.ready_timeout_s, self._node_count = ready_timeout_s, nodes
        self._env = dict(env or {})
        self._nodes: list[subprocess.Popen] = []
        self._serve: subprocess.Popen | None = None
        self._last_logs = ""
        self.home: Path | None = None

    # -- life ----------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the nodes and the application; returns before the models are ready (see `wait_until_ready`)."""
        if not importlib.util.find_spec("ray"):
            raise ServerError("Ray Serve is not installed: pip install 'elasticlm[ray]'")
        self.home = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # Ray's sockets need a short path
        port, http_port, metrics_port = free_ports(3)
        self._address = f"127.0.0.1:{port}"
        self.inference_url = f"http://127.0.0.1:{http_port}"
        self.metrics_url = f"http://127.0.0.1:{metrics_port}"
        self._node(["--head", f"--port={port}", f"--metrics-export-port={metrics_port}", "--include-dashboard=false",
                    f"--temp-dir={self.home / 'ray'}"])  # fmt: skip
        for _ in range(self._node_count - 1):
            self.add_node()
        config = {
            "proxy_location": "HeadOnly",
            "http_options": {"host": "127.0.0.1", "port": http_port},
            "applications": [{"name": APPLICATION, "route_prefix": "/", "args": self.arguments,
                              "import_path": "elasticlm.handlers.ray_app:build"}],
        }  # fmt: skip
        file = self.home / "serve.yaml"
        file.write_text(yaml.safe_dump(config), encoding="utf-8")
        self._serve = self._run("serve", ["run", f"--address={self._address}", str(file)], "serve.log")

    def add_node(self) -> None:
        """Start another node."""
        self._node([f"--address={self._address}"])

    def kill_node(self, number: int = -1) -> None:
        """Kill all processes of a node at once, as if its machine had lost power."""
        node = self._nodes.pop(number)
        processes = process_tree(node.pid)
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)
        psutil.wait_procs(processes, timeout=10)
        node.wait(10)

    def stop(self) -> None:
        """End the processes that `start` made, and remove the folder."""
        if self._serve is not None:
            self._serve.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._serve.wait(20)
        started = [each for each in (self._serve, *self._nodes) if each is not None]
        processes = [process for each in started for process in process_tree(each.pid)]
        for process in reversed(processes):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.terminate()
        _, left = psutil.wait_procs(processes, timeout=5)
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        for each in started:
            each.wait()
        self._serve, self._nodes = None, []
        if self.home is not None:
            self._last_logs = self.logs()
            shutil.rmtree(self.home, ignore_errors=True)
            self.home = None

    # -- what it says --------------------------------------------------------------------------------------------------

    def wait_until_ready(self) -> None:
        """Wait until every replica is ready (the ingress answers before that)."""
        deadline = time.monotonic() + self.ready_timeout_s
        while time.monotonic() < deadline:
            with contextlib.suppress(requests.RequestException):
                if requests.get(f"{self.inference_url}/ready", timeout=5).ok:
                    return
            if self._serve is None or self._serve.poll() is not None:
                raise ServerError(f"Ray Serve ended while it started:\n{self._why()}")
            time.sleep(0.2)
        raise ServerError(f"Ray Serve was not ready within {self.ready_timeout_s:g} s:\n{self._why()}")

    def workers(self, name: str) -> list[dict]:
        """Return the replicas of an archive: the process id of each."""
        return [{"pid": process.pid} for process in self._processes()
                if _title(process).startswith(f"ray::ServeReplica:{APPLICATION}:{name}")]  # fmt: skip

    def pids(self) -> list[int]:
        """Return the ids of all processes of the cluster."""
        return [process.pid for process in self._processes()]

    def logs(self) -> str:
        """Return what Ray Serve printed; after `stop`, what it had printed until then."""
        if self.home is None:
            return self._last_logs
        file = self.home / "serve.log"
        return file.read_text(errors="replace") if file.is_file() else ""

    # -- inside --------------------------------------------------------------------------------------------------------

    def _node(self, options: list[str]) -> None:
        command = [
            "start",
            "--block",
            "--node-ip-address=127.0.0.1",
            f"--num-cpus={NODE_CPUS}",
            "--disable-usage-stats",
        ]
        number = len(self._nodes)
        self._nodes.append(self._run("ray", [*command, *options], f"node-{number}.log"))
        assert self.home is not None
        log, deadline = self.home / f"node-{number}.log", time.monotonic() + 60
        while "Ray runtime started" not in log.read_text(errors="replace"):
            if self._nodes[-1].poll() is not None or time.monotonic() > deadline:
                raise ServerError(f"a Ray node did not start:\n{log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.1)

    def _run(self, program: str, options: list[str], log: str) -> subprocess.Popen:
        assert self.home is not None, "the server is not running"
        environment = os.environ | ENVIRONMENT | (LOOPBACK if self._node_count == 1 else {})
        environment |= {"HOME": str(self.home), "TMPDIR": str(self.home)} | self._env
        environment.pop("RAY_ADDRESS", None)
        with open(self.home / log, "wb") as output:
            return subprocess.Popen(
                [str(Path(sys.executable).with_name(program)), *options], cwd=self.home, env=environment,
                stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip

    def _processes(self) -> Iterator[psutil.Process]:
        for node in self._nodes:
            yield from process_tree(node.pid)

    def _why(self) -> str:
        """Return what explains a failure: the last lines."""
        return "\n".join(self.logs().splitlines()[-25:])


def _title(process: psutil.Process) -> str:
    try:
        return (process.cmdline() or [""])[0]
    except psutil.NoSuchProcess:
        return ""
