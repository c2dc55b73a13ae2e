"""Checks of what a command was given, before anything heavy is imported: names, files, data specs."""

import argparse
from collections.abc import Iterable
from pathlib import Path

from elasticlm.errors import InputError
from elasticlm.files import require_file
from elasticlm.model import POOLINGS
from elasticlm.model.download import check_model_name
from elasticlm.retrieval.data_specs import check_spec

FILE_OPTIONS = ("ids", "run")


def check_model(option: str, name: str) -> None:
    """Raise InputError where an option names neither a folder nor what may be a model on the hub."""
    try:
        check_model_name(name)
    except InputError as error:
        raise InputError(f"{option} {error}") from None


def add_teacher_options(parser: argparse.ArgumentParser, option: str) -> None:
    """Add the settings of a teacher that its files may lack; ``option`` names the teacher."""
    parser.add_argument("--pooling", choices=POOLINGS, help=f"pooling of {option}, if it is a teacher (default: as "
                        "its files say)")  # fmt: skip
    for kind in ("query", "passage"):
        parser.add_argument(f"--{kind}-prompt", metavar="TEXT", help=f"text put before each {kind} by {option}, if it "
                            f"is a teacher, such as '{kind}: ' for E5 (default: as its files say)")  # fmt: skip


def teacher_settings(args: argparse.Namespace) -> dict[str, str | None]:
    """The settings of a teacher that the options give, as load_model() takes them."""
    return {name: getattr(args, name) for name in ("pooling", "query_prompt", "passage_prompt")}


def check_data(specs: Iterable[str]) -> None:
    """Raise InputError for a data spec of an unknown kind, or whose folder or file is missing."""
    for spec in specs:
        check_spec(spec)


def check_files(args: argparse.Namespace) -> None:
    """Raise InputError where an index, its ids or a run that the options name is missing."""
    for name in FILE_OPTIONS:
        if getattr(args, name, None):
            require_file(getattr(args, name))
    if index := getattr(args, "index", None):
        check_index(index)
    elif getattr(args, "ids", None):
        raise InputError("--ids names the passages of an index: give --index FILE.faiss too")


def check_index(index: str) -> None:
    """Raise InputError where there is no such index folder or FAISS file."""
    if not Path(index).exists():
        raise InputError(f"--index {index}: no such file or folder")
