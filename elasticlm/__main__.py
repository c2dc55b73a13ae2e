"""``elasticlm COMMAND``: every command of the project, by its name.

A command is a module with ``main(argv)``. It is imported only when it runs, so that ``elasticlm --help`` is fast.
The table below is the only place where the library names trainer, handlers and benchmarks.
"""

import importlib
import os
import sys
from collections.abc import Callable

from elasticlm import command
from elasticlm.errors import InputError
from elasticlm.hints import unknown

COMMANDS: dict[str, dict[str, tuple[str, str]]] = {
    "Train": {
        "prune": ("elasticlm.trainer.prune", "rank a teacher's heads and neurons and write nested levels"),
        "distil": ("elasticlm.trainer.distil", "train all levels on plain text to keep the teacher's relations"),
        "finetune": ("elasticlm.trainer.finetune", "train all levels for a task: align, retrieve, rerank, classify"),
        "baseline": ("elasticlm.trainer.baseline", "train a system that the paper compares with"),
        "index": ("elasticlm.trainer.index", "encode a corpus into a passage index"),
        "export": ("elasticlm.trainer.export", "write one level as its own artifact, or ONNX graphs of all levels"),
        "recipe": ("elasticlm.trainer.recipe", "run several of these in a row, as a YAML file says"),
    },
    "Measure": {
        "paper": ("elasticlm.trainer.paper.paper_command", "make a table or figure of the paper, row by row"),
        "evaluate": ("elasticlm.trainer.evaluate", "measure the quality of every level against the teacher"),
        "compare": ("elasticlm.trainer.compare", "test whether two evaluations differ"),
        "retention": ("elasticlm.benchmarks.retention", "draw what each level keeps, over several evaluations"),
        "glue-mean": ("elasticlm.benchmarks.glue_mean", "average what each level keeps over several GLUE sets"),
        "profile": ("elasticlm.trainer.profile", "measure the latency table of an artifact on this machine"),
        "engines": ("elasticlm.benchmarks.engines", "time every level against static inference engines"),
        "families": ("elasticlm.benchmarks.family_sizes", "time every level of each encoder family at base size"),
        "large-corpus": ("elasticlm.benchmarks.large_corpus", "measure the memory of indexing and evaluating"),
    },
    "Serve": {
        "archive": ("elasticlm.handlers.archive", "pack an artifact for TorchServe"),
        "policies": ("elasticlm.benchmarks.policy_command", "simulate policies on your arrivals, without a server"),
        "simulate": ("elasticlm.benchmarks.simulate", "send a rush to a TorchServe of its own and draw it"),
        "validate": ("elasticlm.benchmarks.validate", "compare the policy simulator with runs of the real server"),
        "overhead": ("elasticlm.benchmarks.overhead", "measure what the server adds to a request"),
        "signal": ("elasticlm.benchmarks.signal_check", "compare the load signal with the server's true queue"),
        "stress": ("elasticlm.benchmarks.stress", "measure overload and faults on a TorchServe of its own"),
        "cluster": (
            "elasticlm.benchmarks.cluster",
            "measure load, the loss of a node and scaling on Ray nodes",
        ),
        "servers": (
            "elasticlm.benchmarks.server_comparison",
            "send the same load to TorchServe, Ray Serve and LitServe",
        ),
        "fuzz": ("elasticlm.benchmarks.fuzz", "send hostile requests to the core and to a TorchServe of its own"),
        "soak": ("elasticlm.benchmarks.soak", "run rushes for minutes and watch memory and file handles"),
        "report": ("elasticlm.benchmarks.report", "draw the pictures and the page of a simulation again"),
        "demo": ("elasticlm.benchmarks.demo", "from a pretrained model to a rush on a page"),
    },
}
DATA_PARALLEL = ("distil", "finetune", "baseline", "index")
"""The commands that torchrun may run in several processes."""
MODULES = {name: module for group in COMMANDS.values() for name, (module, _) in group.items()}


def main(argv: list[str] | None = None) -> int | None:
    """Run the command that ``argv`` names (default: the process's own arguments)."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help"):
        print(usage())
        return None if argv else command.BAD_INPUT
    if argv[0] == "--version":
        from elasticlm import __version__

        print(f"elasticlm {__version__}")
        return None
    run_command = load(argv[0])
    if os.environ.get("WORLD_SIZE", "1") != "1" and argv[0] not in DATA_PARALLEL:
        raise InputError(f"{argv[0]} runs in one process, not {os.environ['WORLD_SIZE']}: start it without torchrun")
    return run_command(argv[1:])


def load(name: str) -> Callable[[list[str]], int | None]:
    """Return the main function of a command; raises InputError for an unknown name."""
    if name not in MODULES:
        raise InputError(unknown("command", name, MODULES))
    return importlib.import_module(MODULES[name]).main


def usage() -> str:
    """The help of ``elasticlm`` itself, grouped by what people do."""
    width = max(map(len, MODULES))
    lines = ["usage: elasticlm COMMAND [options]", "", "elasticlm COMMAND --help shows a command's options."]
    for group, commands in COMMANDS.items():
        lines += ["", f"{group}:", *(f"  {name.ljust(width)}  {text}" for name, (_, text) in commands.items())]
    return "\n".join(lines)


def run() -> None:
    """The console script ``elasticlm``."""
    command.run(main)


if __name__ == "__main__":
    run()
