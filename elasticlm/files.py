"""Write files and folders atomically and durably, one run at a time.

An output is either complete or absent, even after a power loss. Who writes it holds its lock, and a second run on it is
refused. What a killed run left next to an output is removed by the next run on it.
"""

import errno
import fcntl
import hashlib
import logging
import os
import shutil
import socket
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from glob import escape
from pathlib import Path

from elasticlm.errors import InputError

logger = logging.getLogger(__name__)

HELD_ELSEWHERE = (errno.EACCES, errno.EAGAIN)
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

_held: set[Path] = set()  # lock files of this process


@contextmanager
def claim(*outputs: str | Path, overwrite: bool) -> Iterator[None]:
    """Hold the outputs of a command while it runs, so that an hour's work does not end in a refusal.

    Raises InputError where one of them exists and may not be overwritten, or another run writes it. Under torchrun the
    first process holds them for all.
    """
    with ExitStack() as stack:
        if is_main_process():
            for output in outputs:
                stack.enter_context(lock(output))
                refuse_existing(output, overwrite=overwrite)
        yield


@contextmanager
def lock(path: str | Path, *, wait: bool = False) -> Iterator[None]:
    """Hold the lock of an output; blocks of the same process may be nested.

    It is an fcntl lock on ``.NAME.lock`` next to the output, so the kernel releases it when the process ends, however
    that happens, and NFS passes it on to other hosts. Where a filesystem has no locks, a warning says so and the block
    runs without.

    Args:
        wait: wait for the process that holds it, which is for short work. Otherwise InputError names that process.
    """
    path = Path(path)
    real = path.resolve()
    file = real.with_name(f".{real.name}.lock")
    if file in _held:
        yield
        return
    missing = [folder for folder in file.parents if not folder.exists()]
    descriptor = _open_locked(file, path, wait)
    _held.add(file)
    try:
        if descriptor is not None:
            _remove_leftovers(path)
        yield
    finally:
        _held.discard(file)
        file.unlink(missing_ok=True)  # while it is locked, see _open_locked
        if descriptor is not None:
            os.close(descriptor)
        with suppress(OSError):  # the first one that is not empty
            for folder in missing:
                folder.rmdir()


@contextmanager
def new_folder(path: str | Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary sibling folder that becomes ``path`` when the block succeeds and vanishes when it fails.

    Raises InputError where ``path`` already holds something and ``overwrite`` was not asked for, where another process
    is writing it, and where the disk is full.
    """
    path = Path(path)
    with lock(path):
        refuse_existing(path, overwrite=overwrite)
        temporary = _sibling(path, "tmp")
        temporary.mkdir()
        try:
            with _refused_if_full(path):
                yield temporary
                _sync(temporary)
            _replace(path, temporary)
        finally:
            _remove(temporary)


def publish_folder(source: str | Path, path: str | Path, *, overwrite: bool = False) -> None:
    """Rename ``source``, a folder of the same filesystem that several runs may have filled, to ``path``.

    Raises InputError as new_folder() does. ``source`` stays where it is then.
    """
    source, path = Path(source), Path(path)
    with lock(path):
        refuse_existing(path, overwrite=overwrite)
        with _refused_if_full(path):
            _sync(source)
        _replace(path, source)


@contextmanager
def new_file(path: str | Path, *, overwrite: bool = True) -> Iterator[Path]:
    """Yield a temporary sibling path whose file replaces ``path`` when the block succeeds.

    Waits while another process writes it. Raises InputError as new_folder() does.
    """
    path = Path(path)
    with lock(path, wait=True):
        refuse_existing(path, overwrite=overwrite)
        temporary = _sibling(path, "tmp")
        try:
            with _refused_if_full(path):
                yield temporary
                _sync(temporary)
            os.replace(temporary, path)
            _sync_one(path.parent)
        finally:
            _remove(temporary)


def remove_folder(path: str | Path) -> None:
    """Remove a folder, if it is there. It is renamed first, so that nobody takes a part of it for the whole."""
    path = Path(path)
    with lock(path):
        if path.exists():
            temporary = _sibling(path, "tmp")
            path.rename(temporary)
            _remove(temporary)


def refuse_existing(path: str | Path, *, overwrite: bool) -> None:
    """Raise InputError where ``path`` is a file or a folder with something in it, unless it may be overwritten."""
    path = Path(path)
    occupied = path.exists() and not (path.is_dir() and not any(path.iterdir()))
    if occupied and not overwrite:
        raise InputError(f"{path} exists already: choose another output or give --overwrite")


def require_file(path: str | Path, missing: str = "no such file") -> None:
    """Raise InputError where there is no such file; ``missing`` says what that means and what to do about it."""
    if not Path(path).is_file():
        raise InputError(f"{path}: {missing}")


def is_main_process() -> bool:
    """Whether this is the first process of a run under torchrun, or the only one."""
    return os.environ.get("RANK", "0") == "0"


def full_disk(error: BaseException | None) -> BaseException | None:
    """Return the error, or what caused it, that comes from a full disk, a quota or a limit on file sizes.

    Libraries in C++ and Rust raise other kinds than OSError, which only say so.

    >>> full_disk(RuntimeError("write error: No space left on device"))
    RuntimeError('write error: No space left on device')
    >>> full_disk(OSError(errno.ENOENT, "No such file or directory"))
    """
    while error is not None:
        by_number = isinstance(error, OSError) and error.errno in FULL
        if by_number or any(os.strerror(number) in str(error) for number in FULL):
            return error
        error = error.__cause__ or error.__context__
    return None


def sha256_file(path: str | Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _open_locked(file: Path, output: Path, wait: bool) -> int | None:
    """Open and lock a lock file; None where the filesystem has no locks. It then says which process holds it.

    Whoever holds the lock removes the file, so a lock counts only if the file is still there.
    """
    while True:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except FileNotFoundError:  # another process has removed the empty folder again
            continue
        except OSError as error:
            raise InputError(f"{output}: cannot be written there ({error.strerror}: {error.filename})") from None
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(descriptor, 256, 0).decode(errors="replace") or "unknown"
            if error.errno in NO_LOCKS:
                os.close(descriptor)
                logger.warning("%s: no locks on this filesystem; do not start a second run on this output", output)
                return None
            if error.errno not in HELD_ELSEWHERE or not wait:
                os.close(descriptor)
                raise InputError(f"{output}: another run is writing it (process {holder}); wait until it has ended, "
                                 "or choose another output") from None  # fmt: skip
            logger.warning("%s: waiting for the run that is writing it (process %s)", output, holder)
            fcntl.lockf(descriptor, fcntl.LOCK_EX)
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.stat(file)):
                _write_holder(descriptor)
                return descriptor
        os.close(descriptor)


def _write_holder(descriptor: int) -> None:
    with suppress(OSError):  # a full disk is no reason to run without a lock
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()} on {socket.gethostname()}".encode(), 0)


def _remove_leftovers(path: Path) -> None:
    """Remove the temporary siblings of a killed run. An output that it had moved away is put back."""
    for old in path.parent.glob(f".{escape(path.name)}.????????.old"):
        if path.exists():
            _remove(old)
        else:
            old.rename(path)
    for dots in (".", ".."):  # two: siblings of a sibling, made by what wrote into it
        for temporary in path.parent.glob(f"{dots}{escape(path.name)}.????????.tmp*"):
            _remove(temporary)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def _refused_if_full(path: Path) -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        if reason := full_disk(error):
            raise InputError(f"{path}: not written, because the disk is full ({reason})") from error
        raise


def _replace(path: Path, folder: Path) -> None:
    """Rename a folder to ``path``. What is there is moved away and deleted last, so that a crash loses neither."""
    if path.exists():
        old = _sibling(path, "old")
        path.rename(old)
        folder.rename(path)
        _remove(old)
    else:
        folder.rename(path)
    _sync_one(path.parent)


def _sync(path: Path) -> None:
    """Write a file, or all of a folder, to disk, so that a rename cannot become durable before the content."""
    for each in [*path.rglob("*"), path] if path.is_dir() else [path]:
        _sync_one(each)


def _sync_one(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sibling(path: Path, kind: str) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.{kind}")
