"""Columns of text files, kept as Arrow files until the text file changes, so that they need not fit in memory."""

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path

from elasticlm.errors import InputError
from elasticlm.retrieval.columns import ArrowColumn, first_repeat
from elasticlm.retrieval.corpus import cache_folder
from elasticlm.retrieval.lines import numbered_lines, plain_or_gz

RowReader = Callable[[str, str, tuple[int, int]], Iterator[dict[str, str]]]
"""Yields the checked rows of a file, a function of a module: its path, its name in messages, and its size and time of
change, which tell one state of the file from another in the cache."""


def parsed_columns(path: Path, rows: RowReader, names: Sequence[str]) -> dict[str, ArrowColumn]:
    """Return columns of a file, or of its compressed form (.gz), as its rows give them.

    Goes through ``datasets`` with a reader of our own, since its loaders name no line in their errors. Raises
    InputError where the file is missing, and what the reader raises.
    """
    import datasets  # a second to import, which only readers of data should pay

    path = plain_or_gz(path)
    if not path.is_file():
        raise InputError(f"no such file {path}")
    stat = path.stat()
    shown = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        table = datasets.Dataset.from_generator(
            rows,
            features=datasets.Features({name: datasets.Value("string") for name in names}),
            cache_dir=str(cache_folder() / "datasets"),
            gen_kwargs={"path": str(path.resolve()), "shown_as": str(path), "stamp": (stat.st_size, stat.st_mtime_ns)},
        )
    except datasets.exceptions.DatasetGenerationError as error:
        if isinstance(error.__cause__, InputError):
            raise error.__cause__ from None
        raise
    finally:
        if shown:
            datasets.enable_progress_bars()
    return {name: ArrowColumn(table.data.column(name)) for name in table.column_names}


def check_unique(ids: Sequence[str], path: Path, *, name: str, header: bool = False) -> None:
    """Raise InputError, with the line, for an id that occurs twice in a file.

    Args:
        name: the id's name in the file.
        header: whether the first line is not a row.
    """
    if repeat := first_repeat(ids):
        lines = (next(islice(numbered_lines(plain_or_gz(path)), row + header, None)) for row in repeat)
        place, first = lines
        raise InputError(f"{place[0]}: duplicate {name} {ids[repeat[0]]!r}, first in line {first[1]}")
