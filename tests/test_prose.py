"""The mechanical part of the project's English: phrases that a native speaker would not write."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
UNITS = "ms|s|MB|MiB|KB|KiB|GB|GiB|seconds|minutes|tokens|requests|queries|passages|points|steps"
PER = "second|query|request|level|step|batch|worker|cell|token|passage|layer|minute|set|process|row|line"
ONE = "graph|row|file|line|model|process|weight|session|scale|number"
RULES = {
    r"(?<![\w.\]/])\.\d": "a decimal needs a digit before its point: 0.5",
    r"\d %": "no space before the percent sign: 5%",
    rf"\b(?:{UNITS}) an? (?:{PER})\b": "34 ms per query",
    rf"\b(?:{ONE}) an? (?:{PER}|machine|shape)\b": "one graph per level",
    r"\b(?:stands|told)\b": "is, reported, given",
    r"\bheld against\b": "checked against, compared with",
    r"\bbeside\b": "next to, compared with, while",
    r"\bdrowns\b": "latency grows without bound",
    r"\bpulled to\b": "trained to match",
    r"\bgoes on where\b": "can be resumed",
}
CODE = re.compile(r"```.*?```|``.*?``|`[^`\n]*`|\]\([^)]*\)|^(?: {4}|\t)[^\n]*$", re.S | re.M)
PAGES = [
    *ROOT.glob("*.md"),
    *ROOT.glob("docs/*.md"),
    *ROOT.glob("benchmarks/results/*.md"),
    ROOT / "model_store/README.md",
]
MODULES = [
    file for folder in ("elasticlm", "trainer", "handlers", "benchmarks") for file in (ROOT / folder).rglob("*.py")
]


def prose_of(file: Path) -> Iterator[str]:
    """A page without its code, or the docstrings of a module without theirs."""
    text = file.read_text("utf-8")
    if file.suffix == ".md":
        yield CODE.sub("", text)
        return
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and (docstring := ast.get_docstring(node)):
            yield re.sub(r"``.*?``|`[^`\n]*`|>>>[^\n]*(?:\n\S[^\n]*)*", "", docstring, flags=re.S)


@pytest.mark.parametrize("file", [*PAGES, *MODULES], ids=lambda file: str(file.relative_to(ROOT)))
def test_prose(file):
    found = [
        f"{text[max(0, match.start() - 40) : match.end() + 20]!r}: {advice}"
        for text in prose_of(file)
        for rule, advice in RULES.items()
        for match in re.finditer(rule, text)
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "text", ["34 ms a query", "a graph a level", ".602", "5 % better", "it stands", "we are told", "held against it"]
)
def test_the_rules_find_what_they_name(text):
    assert any(re.search(rule, text) for rule in RULES)
