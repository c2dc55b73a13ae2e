"""LABEL=A.json[,B.json]: evaluations under a label, as options name them."""

from elasticlm.errors import InputError


def labelled_files(training: str) -> tuple[str, list[str]]:
    """The parts of ``LABEL=A.json[,B.json]``."""
    label, equals, files = training.partition("=")
    if not equals or not label:
        raise InputError(f"{training}: expected LABEL=FILE.json")
    return label, files.split(",")
