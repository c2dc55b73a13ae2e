"""How many requests the workers of a model have taken from the queue, in a small file that they share.

Each worker counts in a slot of its own. It claims the slot with a file lock, which the kernel releases when the process
ends, and continues the slot's count; every slot stays in the sum for ever. So the sum never falls, whoever dies.
"""

import fcntl
import hashlib
import logging
import mmap
import os
import re
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Protocol

logger = logging.getLogger(__name__)

SLOTS, SLOT_BYTES = 256, 8


class Counts(Protocol):
    """Requests that workers have taken. ``shared`` says whether those of other workers are known as well."""

    shared: bool

    def add(self, count: int) -> int:
        """Add a batch of this worker, and return the sum over all workers."""


class OwnCount:
    """The count of a worker that knows of no others."""

    shared = False

    def __init__(self) -> None:
        self._sum = 0

    def add(self, count: int) -> int:
        self._sum += count
        return self._sum


class SharedCounts:
    """The counts of all workers of a model.

    Args:
        file: shared by the workers of one model under one server; created if there is none.

    Raises OSError if the file cannot be used, or no slot is free.
    """

    shared = True

    def __init__(self, file: Path) -> None:
        self._file = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        os.ftruncate(self._file, SLOTS * SLOT_BYTES)
        self._slot = self._claim()
        self._counts = memoryview(mmap.mmap(self._file, SLOTS * SLOT_BYTES)).cast("Q")

    def _claim(self) -> int:
        for slot in range(SLOTS):
            try:
                fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, SLOT_BYTES, slot * SLOT_BYTES)
            except BlockingIOError:
                continue
            return slot
        raise OSError(f"all {SLOTS} slots are taken")

    def add(self, count: int) -> int:
        self._counts[self._slot] += count
        return sum(self._counts)


def open_counts(model: str, version: str) -> Counts:
    """Return the counts that this worker shares with the model's other workers under the same server (its parent).

    If there can be no file, the worker counts alone, and with several workers the ages of requests are not known.
    """
    try:
        folder = _private_folder()
        _remove_stale(folder)
        name = hashlib.sha256(f"{model}\0{version}".encode()).hexdigest()[:16]
        return SharedCounts(folder / f"{os.getppid()}-{name}")
    except OSError as error:
        logger.warning("no file for the counts of all workers (%s): with several workers, ages are unknown", error)
        return OwnCount()


def _private_folder() -> Path:
    """Return a folder in the temporary folder that no other user can write to. Raises OSError."""
    folder = Path(tempfile.gettempdir()) / f"elasticlm-counts-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if folder.is_symlink() or status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise PermissionError(f"{folder} is open to other users")
    return folder


def _remove_stale(folder: Path) -> None:
    """Remove the files of servers that have ended."""
    for file in folder.iterdir():
        if match := re.fullmatch(r"(\d+)-[0-9a-f]{16}", file.name):
            try:
                os.kill(int(match[1]), 0)
            except ProcessLookupError:
                with suppress(OSError):
                    file.unlink()
            except OSError:
                continue
