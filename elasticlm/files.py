"""Write files and folders atomically and durably: an output is either complete or absent, even after a power loss."""

import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from elasticlm.errors import InputError


@contextmanager
def new_folder(path: str | Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary sibling folder that becomes ``path`` when the block succeeds and vanishes when it fails.

    Raises InputError where ``path`` already holds something and ``overwrite`` was not asked for.
    """
    path = Path(path)
    refuse_existing(path, overwrite=overwrite)
    temporary = _sibling(path)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        _sync(temporary)
        if path.is_dir():  # rename the old folder and delete it last, so that a crash loses neither
            old = _sibling(path)
            path.rename(old)
            temporary.rename(path)
            shutil.rmtree(old)
        else:
            temporary.rename(path)
        _sync_one(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def new_file(path: str | Path, *, overwrite: bool = True) -> Iterator[Path]:
    """Yield a temporary sibling path whose file replaces ``path`` when the block succeeds."""
    path = Path(path)
    refuse_existing(path, overwrite=overwrite)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _sibling(path)
    try:
        yield temporary
        _sync(temporary)
        os.replace(temporary, path)
        _sync_one(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def refuse_existing(path: str | Path, *, overwrite: bool) -> None:
    """Raise InputError where ``path`` is a file or a folder with something in it, unless it may be overwritten.

    Commands call it first, so that an hour's work does not end in the refusal.
    """
    path = Path(path)
    occupied = path.exists() and not (path.is_dir() and not any(path.iterdir()))
    if occupied and not overwrite:
        raise InputError(f"{path} exists already: choose another output or give --overwrite")


def require_file(path: str | Path, missing: str = "no such file") -> None:
    """Raise InputError where there is no such file; ``missing`` says what that means and what to do about it."""
    if not Path(path).is_file():
        raise InputError(f"{path}: {missing}")


def sha256_file(path: str | Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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


def _sibling(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
