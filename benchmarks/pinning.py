"""Workers on cores of their own, so that the frontend and the driver do not take time from them in a burst."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import psutil

from elasticlm.benchmarks.servers import RunningServer


@contextmanager
def pinned(server: RunningServer, name: str, *, enabled: bool = True) -> Iterator[None]:
    """Run the model's workers on the last cores, and the frontend and this process (with the driver) on the others.

    Does nothing where there are not more cores than workers, or where cores cannot be chosen.
    """
    before = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_setaffinity") else []
    workers = [worker["pid"] for worker in server.workers(name)] if enabled else []
    if not workers or len(before) <= len(workers):
        yield
        return
    theirs, others = before[-len(workers) :], before[: -len(workers)]
    for pid in [os.getpid(), *server.pids()]:
        _pin(pid, others)
    for pid in workers:
        _pin(pid, theirs)
    try:
        yield
    finally:
        _pin(os.getpid(), before)


def _pin(pid: int, cores: list[int]) -> None:
    """Pin all threads of a process; those that it starts later inherit their starter's cores."""
    for thread in psutil.Process(pid).threads():
        os.sched_setaffinity(thread.id, cores)
