"""The files of an index folder: passages.faiss, ids.txt and index.json, or shards of these and one index.json.

A shard is an index folder itself, named shard-00000 and so on. The index.json above the shards has one field more:
``shards``, the number of passages of each.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from elasticlm.errors import InputError
from elasticlm.files import new_folder
from elasticlm.retrieval.passage_ids import check_ids

FAISS_FILE, IDS_FILE, JSON_FILE = "passages.faiss", "ids.txt", "index.json"


def shard_name(number: int) -> str:
    """The name of a shard's folder.

    >>> shard_name(7)
    'shard-00007'
    """
    return f"shard-{number:05d}"


@contextmanager
def new_index_folder(
    folder: str | Path,
    ids: Sequence[str],
    dim: int,
    fingerprint: str | None,
    corpus_sha256: str | None,
    *,
    overwrite: bool,
) -> Iterator[Path]:
    """Yield a temporary folder that becomes an index folder; all but the FAISS file is written here."""
    check_ids(ids)
    with new_folder(folder, overwrite=overwrite) as temporary:
        yield temporary
        with open(temporary / IDS_FILE, "w", encoding="utf-8") as lines:
            lines.writelines(f"{pid}\n" for pid in ids)
        _write_facts(temporary, fingerprint, dim, len(ids), corpus_sha256)


def write_shard_counts(
    folder: Path, counts: Sequence[int], dim: int, fingerprint: str | None, corpus_sha256: str | None
) -> None:
    """Write the index.json of a folder of shards.

    Args:
        counts: the number of passages of each shard.
    """
    _write_facts(folder, fingerprint, dim, sum(counts), corpus_sha256, shards=list(counts))


def read_facts(folder: Path) -> dict[str, Any]:
    """Return what index.json says, or nothing where there is none. Raises InputError where it cannot be read."""
    file = folder / JSON_FILE
    if not file.is_file():
        return {}
    try:
        facts = json.loads(file.read_text("utf-8"))
    except ValueError as error:
        raise InputError(f"{file}: not JSON ({error})") from None
    if not isinstance(facts, dict):
        raise InputError(f"{file}: expected an object with fingerprint, dim, count and corpus_sha256")
    shards = facts.get("shards", [0])
    if not (isinstance(shards, list) and shards and all(type(count) is int for count in shards)):
        raise InputError(f"{file}: expected shards to be a list of numbers of passages")
    return facts


def _write_facts(
    folder: Path, fingerprint: str | None, dim: int, count: int, corpus_sha256: str | None, **more: Any
) -> None:
    facts = {"fingerprint": fingerprint, "dim": dim, "count": count, "corpus_sha256": corpus_sha256} | more
    (folder / JSON_FILE).write_text(json.dumps(facts, indent=1) + "\n", "utf-8")
