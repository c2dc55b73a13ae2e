"""The SHA-256 of an artifact's ONNX graphs: listed in config.json when they are exported, checked when they are loaded.

    "graphs": {"int8": {"50.onnx": SHA-256, ..., "export.json": SHA-256}}

All files of a precision's folder are listed, external data included. Graphs that are not listed are absent. This finds
graphs that were damaged, mixed up or put there by others; it is no protection from someone who can write config.json.
Artifacts from before the field (it is missing in config.json) are read with a warning.
"""

import functools
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from elasticlm.errors import InputError
from elasticlm.files import lock, new_folder, sha256_file
from elasticlm.model.artifact import read_config, update_config
from elasticlm.model.folder import CONFIG_FILE, GRAPHS_FOLDER

logger = logging.getLogger(__name__)

Hashes = dict[str, str]
"""SHA-256 by file name."""


def graphs_folder(artifact: str | Path, precision: str) -> Path:
    """Where an artifact keeps the graphs of a precision."""
    return Path(artifact) / GRAPHS_FOLDER / precision


def listed(artifact: str | Path, precision: str) -> Hashes | None:
    """What config.json lists of a precision; nothing where there are no graphs. None: from before it listed any."""
    graphs = read_config(artifact).graphs
    return None if graphs is None else graphs.get(precision, {})


def check_hashes(artifact: str | Path, precision: str, how: str) -> None:
    """Raise InputError, which ends with ``how`` to mend it, unless the files of a precision are those listed."""
    folder, wanted = graphs_folder(artifact, precision), listed(artifact, precision)
    if wanted is None:
        _warn_of_age(folder)
        return
    there = {file.name for file in _files(folder)}
    if unlisted := sorted(there - set(wanted)):
        raise InputError(f"{folder / unlisted[0]}: not listed in {CONFIG_FILE}, so not from the export; {how}")
    for name, sha256 in wanted.items():
        if name not in there or sha256_file(folder / name) != sha256:
            raise InputError(f"{folder / name}: missing, or its SHA-256 differs from {CONFIG_FILE}'s; {how}")


@contextmanager
def new_graphs(artifact: str | Path, precision: str) -> Iterator[Path]:
    """Yield a new folder for the graphs of a precision, which replace those there and are listed in config.json.

    While they are replaced they are not listed, so that graphs are either whole or absent whenever the process ends.
    """
    target = graphs_folder(artifact, precision)
    with lock(target, wait=True):
        before = listed(artifact, precision)
        try:
            with new_folder(target, overwrite=True) as folder:
                yield folder
                hashes = _hashes(folder)
                _list(artifact, precision, {})
            _list(artifact, precision, hashes)
        except BaseException:
            if before:
                _list(artifact, precision, before)
            raise


def _list(artifact: str | Path, precision: str, hashes: Mapping[str, str]) -> None:
    """List a precision's files; graphs of other precisions from before the field are listed as they are."""
    with lock(Path(artifact) / CONFIG_FILE, wait=True):
        graphs = read_config(artifact).graphs
        if graphs is None:
            folders = sorted((Path(artifact) / GRAPHS_FOLDER).glob("[!.]*"))
            graphs = {folder.name: _hashes(folder) for folder in folders if folder.name != precision}
        others = {name: those for name, those in graphs.items() if name != precision}
        update_config(artifact, {"graphs": others | ({precision: dict(hashes)} if hashes else {})})


def _files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.glob("[!.]*") if file.is_file())


def _hashes(folder: Path) -> Hashes:
    return {file.name: sha256_file(file) for file in _files(folder)}


@functools.cache
def _warn_of_age(folder: Path) -> None:
    logger.warning("%s: exported before %s listed SHA-256s, so not checked; export them anew", folder, CONFIG_FILE)
