"""Commands answer at once: help and refusals come before anything heavy is imported."""

import subprocess
import sys

import pytest

from elasticlm.__main__ import COMMANDS, MODULES

HEAVY = ("torch", "transformers", "datasets", "faiss", "pandas", "matplotlib", "scipy", "sklearn", "onnx", "locust")
PROBE = f"""
import sys
from elasticlm import command
from elasticlm.__main__ import main
try:
    command.run(main)
finally:
    heavy = [name for name in {HEAVY!r} if name in sys.modules]
    print("HEAVY", *heavy, file=sys.stderr)
"""

MISSING = [
    "prune --teacher nowhere/at-all/there --data pydoc --output {out}",
    "prune --teacher {model} --data beir:nowhere --output {out}",
    "distil --model nowhere/at/all --teacher {model} --data pydoc --output {out}",
    "finetune --task align --model ./nowhere --data pydoc --output {out}",
    "finetune --task align --model {model} --data text:nowhere.txt --output {out}",
    "finetune --task align --model {model} --data pydoc --index nowhere --output {out}",
    "finetune --task rerank --model {model} --data pydoc --run nowhere.run --output {out}",
    "finetune --task sing --model {model} --data pydoc --output {out}",
    "finetune --task align --model {model} --data pydoc --max-steps 0 --output {out}",
    "index --model ./nowhere --data pydoc --output {out}",
    "index --engine ray --model {model} --data pydoc --shard-size 0 --output {out}",
    "index --engine ray --model {model} --data pydoc --workers x --output {out}",
    "index --engine ray --model {model} --data pydoc --address ray://head:10001 --output {out}",
    "index --engine spark --model {model} --data pydoc --output {out}",
    "index --model {model} --data pydoc --shard-size 10 --output {out}",
    "evaluate --model ./nowhere --data pydoc --output {out}",
    "evaluate --model {model} --data glue:nowhere --output {out}",
    "evaluate --model {model} --data pydoc --levels 101 --output {out}",
    "compare nowhere.json nowhere.json",
    "profile --model ./nowhere",
    "export --model ./nowhere --level 50 --output {out}",
    "recipe nowhere --output {out}",
    "baseline nothing --model {model} --data pydoc --output {out}",
    "baseline tinybert --model ./nowhere --teacher {model} --data pydoc --output {out}",
    "paper table10 --output {out}",
    "archive --model nowhere --name mini --output {out}",
    "simulate --archive nowhere.mar --data pydoc --output {out}",
    "policies --model nowhere --arrivals poisson:10 --output {out}",
    "engines --model nowhere --output {out}",
    "families --seconds -1 --output {out}",
    "overhead --archive nowhere.mar --output {out}",
    "simulate --archive nowhere.mar --data pydoc --server rays --output {out}",
    "cluster --archive nowhere.mar --data pydoc --output {out}",
    "cluster --archive {model} --data pydoc --nodes 1 --output {out}",
    "servers --archive nowhere.mar --data pydoc --output {out}",
    "fuzz --archive nowhere.mar --output {out}",
    "soak --archive nowhere.mar --output {out}",
    "signal --archive nowhere.mar --output {out}",
    "validate --model nowhere --runs nowhere --output {out}",
    "report nowhere",
    "retention a=nowhere.json --output {out}",
    "glue-mean a=nowhere.json --output {out}",
    "evalute --model x",
]


def run(*words: str, cwd=None) -> tuple[int, str, list[str], list[str]]:
    """Exit code, stdout, error lines, and the heavy modules that were imported."""
    done = subprocess.run([sys.executable, "-c", PROBE, *words], capture_output=True, text=True, cwd=cwd, check=False)
    *errors, heavy = done.stderr.strip().splitlines()
    return done.returncode, done.stdout, errors, heavy.split()[1:]


@pytest.mark.parametrize(
    "command", [[], *([name] for name in MODULES)], ids=lambda words: " ".join(words) or "elasticlm"
)
def test_help_is_printed_without_heavy_imports(command):
    code, out, errors, heavy = run(*command, "--help")
    assert (code, errors, heavy) == (0, [], [])
    assert out.startswith("usage: elasticlm")


@pytest.mark.parametrize("words", MISSING)
def test_bad_input_is_refused_in_one_line_without_heavy_imports(words, tiny_artifact, tmp_path):
    code, out, errors, heavy = run(*words.format(model=tiny_artifact, out=tmp_path / "out").split(), cwd=tmp_path)
    assert (code, out, heavy) == (2, "", [])
    assert len(errors) == 1, errors
    assert errors[0].startswith("error: ")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("compare a.json b.json --seed -1", "argument --seed: -1: expected a whole number of 0 or more"),
        ("retention x=a.json --output out --seed 1.5", "argument --seed: 1.5: expected a whole number of 0 or more"),
        ("prune --teacher t --data d --output out --batch-size 1", "expected a whole number of 2 or more"),
        ("distil --model m --teacher t --data d --output out --max-tokens 2", "expected a whole number of 3 or more"),
        ("profile --model m --seconds nan", "argument --seconds: nan: expected a number of 0 or more"),
        (
            "simulate --archive a --output out --repeats 0",
            "argument --repeats: 0: expected a whole number of 1 or more",
        ),
        ("signal --archive a --output out --duration 0", "argument --duration: 0: expected a number above 0"),
        ("soak --archive a --output out --users -3", "argument --users: -3: expected a whole number of 1 or more"),
    ],
)
def test_a_number_out_of_range_is_refused_with_its_option(words, expected, tmp_path):
    code, _, errors, heavy = run(*words.split(), cwd=tmp_path)
    assert (code, heavy) == (2, [])
    assert expected in errors[0]


def test_an_unknown_command_is_refused_with_the_near_match():
    _, _, errors, _ = run("evalute")
    assert "did you mean 'evaluate'?" in errors[0]


def test_the_help_lists_every_command_under_what_people_do():
    _, out, _, _ = run("--help")
    assert [line for line in out.splitlines() if line.endswith(":")] == [f"{group}:" for group in COMMANDS]
    assert all(f"  {name} " in out for name in MODULES)


def test_the_version_is_printed():
    code, out, _, _ = run("--version")
    assert code == 0
    assert out.startswith("elasticlm 0.")
