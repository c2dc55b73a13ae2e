"""Write the shards of an index with Ray Data: an actor pool on a cluster, or on a Ray of this machine's own."""

import logging
import os
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from typing import Any

from tqdm import tqdm

from elasticlm.command import progress
from elasticlm.errors import InputError
from elasticlm.machine import cores
from elasticlm.trainer.sharded_index import Shard, ShardedIndex, ShardWriter

SECONDS_PER_REPORT = 1.0
SECONDS_TO_CONNECT = 10.0
LONGEST_TEMPORARY = 28  # characters; the paths of Ray's sockets are 79 longer, and the system allows 107


def write_shards(index: ShardedIndex, missing: Sequence[Shard], *, address: str | None, workers: int | None) -> None:
    """Encode and write the missing shards, one at a time per worker, and show the progress.

    Args:
        address: of a running cluster, HOST:PORT or auto; None starts Ray on this machine and stops it at the end.
        workers: number of actors; None: one per CPU of the cluster.

    Raises InputError where there is no such cluster, where it has too few CPUs, or where a worker cannot encode a
    shard.
    """
    with ExitStack() as stack:
        stack.enter_context(_cluster(address))
        import ray.data

        cpus = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
        threads_per_worker(cpus, workers or sum(cpus))  # refuses more workers than CPUs
        workers = min(workers or sum(cpus), len(missing))
        index = replace(index, threads=threads_per_worker(cpus, workers))
        counts = ray.remote(num_cpus=0)(ShardCounts).remote()
        total = sum(map(len, index.shards))
        bar = progress(total=total, desc="passages", unit="passage", done=total - sum(map(len, missing)))
        stack.callback(bar.close)
        stack.enter_context(_following(counts, bar))
        rows = ray.data.from_items([asdict(shard) for shard in missing], override_num_blocks=len(missing))
        written = rows.map_batches(
            ShardActor,
            fn_constructor_args=(index, counts),
            batch_size=1,
            num_cpus=index.threads,
            compute=ray.data.ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=1),
        )
        for row in written.iter_rows():
            if row["error"]:
                raise InputError(row["error"])
        bar.update(total - bar.n)
    if lost := next((shard for shard in missing if not index.is_written(shard)), None):
        raise InputError(f"{index.path(lost)}: written by a worker, but not to be seen here: the output must be in a "
                         "file system that all nodes share")  # fmt: skip


def threads_per_worker(cpus: Sequence[int], workers: int) -> int:
    """Return the largest number of threads with which all workers fit on the nodes.

    Args:
        cpus: CPUs of each node.

    Raises InputError where there are more workers than CPUs.

    >>> threads_per_worker([8, 8, 2], 4), threads_per_worker([8, 8, 2], 18)
    (4, 1)
    """
    for threads in range(max(cpus), 0, -1):
        if sum(of_node // threads for of_node in cpus) >= workers:
            return threads
    raise InputError(f"--workers {workers}: the cluster has {sum(cpus)} CPUs, and each worker needs one")


class ShardCounts:
    """An actor that knows how many passages of each shard are encoded."""

    def __init__(self) -> None:
        self._encoded: dict[int, int] = {}

    def report(self, shard: int, passages: int) -> None:
        """Set the count of a shard, which begins anew where a worker had to be replaced."""
        self._encoded[shard] = passages

    def total(self) -> int:
        """The count of all shards."""
        return sum(self._encoded.values())


class ShardReport:
    """Counts the passages of one shard and reports them to the actor every second."""

    def __init__(self, counts: Any, shard: int) -> None:
        self._counts, self._shard, self._encoded, self._reported_at = counts, shard, 0, 0.0

    def update(self, n: int, /) -> None:
        """Count ``n`` more passages."""
        self._encoded += n
        if time.monotonic() - self._reported_at > SECONDS_PER_REPORT:
            self._reported_at = time.monotonic()
            self._counts.report.remote(self._shard, self._encoded)


class ShardActor:
    """A worker of the pool: a batch is one shard. Bad input comes back as a row, so that it is not tried again."""

    def __init__(self, index: ShardedIndex, counts: Any) -> None:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # workers are placed by CPUs, and would all use the first GPU
        self._writer, self._counts = ShardWriter(index), counts

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        (number,), (sha256,), (rows,) = batch["number"], batch["sha256"], batch["rows"]
        shard = Shard(int(number), (int(rows[0]), int(rows[1])), str(sha256))
        try:
            self._writer.write(shard, ShardReport(self._counts, shard.number))
        except InputError as error:
            return {"error": [str(error)]}
        self._counts.report.remote(shard.number, len(shard))
        return {"error": [""]}


@contextmanager
def _cluster(address: str | None) -> Iterator[None]:
    """Connect to a cluster, or start one on this machine that listens on the loopback interface only."""
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    with ExitStack() as stack:
        if address is None:
            os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # Ray then uses 127.0.0.1, as on those systems
            short = None if len(tempfile.gettempdir()) <= LONGEST_TEMPORARY else "/tmp"
            folder = tempfile.TemporaryDirectory(prefix="ray-", dir=short, ignore_cleanup_errors=True)
            options |= {"num_cpus": cores(), "include_dashboard": False, "_temp_dir": stack.enter_context(folder)}
        import ray.data

        if address is not None:
            _check_head(address)
        stack.callback(signal.signal, signal.SIGTERM, signal.getsignal(signal.SIGTERM))
        stack.callback(ray.shutdown)
        try:
            ray.init(address or "local", **options)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise InputError(f"Ray {address or 'on this machine'}: {str(error).splitlines()[0]}") from None
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # Ray's own handler aborts with a dump of the stack
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = context.print_on_execution_start = False  # the command shows its own
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        yield


def _check_head(address: str) -> None:
    """Raise InputError where nothing listens at HOST:PORT, for which Ray would wait for minutes."""
    import ray.util

    host, _, port = address.rpartition(":")
    if host in ("localhost", "127.0.0.1"):
        host = ray.util.get_node_ip_address()  # as Ray does
    try:
        if address != "auto":
            socket.create_connection((host, int(port)), SECONDS_TO_CONNECT).close()
    except (OSError, ValueError, OverflowError) as error:
        raise InputError(f"--address {address}: no Ray cluster there ({error})") from None


@contextmanager
def _following(counts: Any, bar: tqdm) -> Iterator[None]:
    """Move the bar on while the block runs."""
    import ray

    ended, before = threading.Event(), bar.n

    def follow() -> None:
        while not ended.wait(SECONDS_PER_REPORT):
            bar.update(before + ray.get(counts.total.remote()) - bar.n)

    follower = threading.Thread(target=follow, daemon=True)
    follower.start()
    try:
        yield
    finally:
        ended.set()
        follower.join()
