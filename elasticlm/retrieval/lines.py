"""Lines of text files with the place of each, for messages. Files that end with .gz are decompressed."""

import csv
import gzip
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from elasticlm.errors import InputError


def numbered_lines(path: Path, shown_as: str | None = None) -> Iterator[tuple[str, int, str]]:
    """Yield (place, number, text) of every line that is not blank, without its line break.

    A byte order mark and Windows' line breaks are removed. Raises InputError for a line that is not UTF-8, and for a
    compressed file that is broken.

    Args:
        shown_as: the file's name in messages; None: its path.
    """
    name = shown_as or str(path)
    number = 0
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb") as file:
            for number, raw in enumerate(file, 1):
                try:
                    line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError:
                    raise InputError(f"{name}, line {number}: not UTF-8") from None
                if line.strip():
                    yield f"{name}, line {number}", number, line.rstrip("\r\n")
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(f"{name}, after line {number}: not a gzip file, or cut off ({error})") from None


def tab_separated(
    path: Path, columns: Sequence[str], *, shown_as: str | None = None, quoted: bool = False
) -> Iterator[tuple[str, list[str]]]:
    """Yield (place, values) of every line that is not blank. Raises InputError for a line with other columns.

    Args:
        columns: names of the columns, for messages.
        quoted: whether a value may be in double quotes, as Python's csv module writes it.
    """
    for place, _, line in numbered_lines(path, shown_as):
        try:
            values = next(csv.reader([line], delimiter="\t")) if quoted else line.split("\t")
        except csv.Error as error:
            raise InputError(f"{place}: {error}") from None
        if len(values) != len(columns):
            raise InputError(f"{place}: has {len(values)} columns; expected {', '.join(columns)}, separated by tabs")
        yield place, values


def plain_or_gz(path: Path) -> Path:
    """Return this file, or its compressed form (.gz) if only that exists."""
    compressed = path.with_name(path.name + ".gz")
    return compressed if compressed.is_file() and not path.is_file() else path


def split_files(folder: Path, suffix: str) -> dict[str, Path]:
    """Return the files of a folder by split, which is the name without the suffix; plain files before compressed."""
    compressed = {file.name.removesuffix(f"{suffix}.gz"): file for file in sorted(folder.glob(f"*{suffix}.gz"))}
    return compressed | {file.name.removesuffix(suffix): file for file in sorted(folder.glob(f"*{suffix}"))}
