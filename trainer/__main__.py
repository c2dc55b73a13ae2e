"""``python -m trainer COMMAND``: from a teacher to an elastic artifact, its index, its quality, its latency table."""

import importlib
import sys

from elasticlm import command
from elasticlm.errors import InputError

COMMANDS = {
    "prune": "rank a teacher's heads and neurons, nest the levels in it and write the artifact",
    "distil": "train every level on plain text to keep the teacher's attention relations",
    "finetune": "train every level for a task (align, denser, ranker, classify)",
    "index": "encode a corpus into a passage index",
    "evaluate": "measure every level on a split, beside the teacher",
    "compare": "test whether two evaluations differ",
    "profile": "measure the latency table of an artifact",
    "export": "write one level alone as a stand-alone artifact",
    "recipe": "run several of these in a row, as a YAML file says",
}


def main(argv: list[str] | None = None) -> int | None:
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help"):
        print("usage: python -m trainer COMMAND [options]    (COMMAND --help shows the options)\n")
        width = max(map(len, COMMANDS))
        print("\n".join(f"  {name.ljust(width)}  {help_}" for name, help_ in COMMANDS.items()))
        return None if argv else command.BAD_INPUT
    name, *rest = argv
    if name not in COMMANDS:
        raise InputError(f"unknown command {name!r}: expected one of {', '.join(COMMANDS)}")
    return load(name)(rest)


def load(name: str):
    """Return the main of a command; its module (and what that imports) is loaded only now."""
    return importlib.import_module(f"trainer.{name}").main


if __name__ == "__main__":
    command.run(main)
