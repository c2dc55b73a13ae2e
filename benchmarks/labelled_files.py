"""LABEL=A.json[,B.json]: evaluations under a label, as options name them."""

from collections.abc import Iterable

from elasticlm.errors import InputError
from elasticlm.files import require_file


def labelled_files(training: str) -> tuple[str, list[str]]:
    """The parts of ``LABEL=A.json[,B.json]``."""
    label, equals, files = training.partition("=")
    if not equals or not label:
        raise InputError(f"{training}: expected LABEL=FILE.json")
    return label, files.split(",")


def require_labelled_files(trainings: Iterable[str]) -> None:
    """Raise InputError for the first file that does not exist, or a training that is not LABEL=FILE.json."""
    for training in trainings:
        for file in labelled_files(training)[1]:
            require_file(file)
