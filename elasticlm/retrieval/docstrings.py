"""``pydoc``: a retrieval data set made from the docstrings of the Python packages on this machine.

The docstrings of the standard library and of the installed packages are parsed with ``ast``; nothing is imported and
nothing is shipped. A docstring's summary line is a query, the rest of it the relevant passage, the module and class
that contain it the title (so that several passages share one). Which docstrings are taken, and into which split they
fall, is decided by SHA-1 alone: the same packages give the same set.

The set is written once as a BEIR folder under the cache and read like any other; ``pydoc:1000`` is a smaller one.
"""

import ast
import gc
import hashlib
import importlib.metadata
import inspect
import json
import platform
import re
import sysconfig
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from elasticlm.command import progress
from elasticlm.errors import InputError
from elasticlm.files import lock, new_folder
from elasticlm.retrieval.beir import HEADERS, BeirFolder, read_jsonl
from elasticlm.retrieval.corpus import cache_folder, sha1_share

PASSAGES, TEST_QUERIES, DEV_QUERIES, TRAIN_QUERIES = 5_000, 1_000, 500, 20_000
SUMMARY_WORDS = range(5, 41)
MIN_REST_WORDS, MAX_REST_WORDS = 15, 100  # beyond 100 words a passage costs time and tells little more
PER_TITLE, PER_PACKAGE = 12, 500  # so that no class and no package makes up the set
MODULES_PER_PACKAGE = 200
MIN_DOCSTRINGS = 3  # a module with fewer is not worth parsing
UNJUDGED = "unjudged_train.jsonl"  # summaries whose passages are not in the corpus: queries for training without labels

SKIPPED_FOLDERS = {"test", "tests", "testing", "_vendor", "vendor", "vendored", "lib2to3", "idlelib", "site-packages",
                   "pydoc_data", "benchmarks", "examples"}  # fmt: skip
SKIPPED_PACKAGES = {"elasticlm", "pip", "setuptools"}  # ourselves, and what differs between otherwise equal machines
STOP_WORDS = frozenset(
    ("a", "an", "and", "are", "as", "be", "by", "can", "for", "from", "has", "if", "in", "into", "is", "it", "its",
     "not", "of", "on", "or", "should", "that", "the", "this", "to", "use", "used", "when", "where", "which", "will",
     "with")
)  # fmt: skip

_ROLE = re.compile(r":[a-z:]+:`~?([^`<]*)[^`]*`")  # :class:`~x.Y` -> x.Y
_MARKUP = re.compile(r"[`*|]+")
_UNDERLINE = re.compile(r"^\s*([-=~^\"#+])\1{2,}\s*$")
_DIRECTIVE = re.compile(r"^\s*(\.\. .*|:[a-z]+:\s*|```.*|\s*\|.*)$")


@dataclass(frozen=True)
class Docstring:
    """One docstring as a pair: its summary line and the rest."""

    package: str
    title: str
    name: str
    summary: str
    rest: str

    @property
    def passage_id(self) -> str:
        return f"{self.title}:{self.name}"

    @property
    def summary_key(self) -> str:
        return _key(self.summary)

    @property
    def rest_key(self) -> str:
        """Alike for rests that begin alike: copies of a docstring often differ further down."""
        return " ".join(_key(self.rest).split()[:25])


class Pydoc(BeirFolder):
    """The set as a BEIR folder in the cache, made at the first use."""

    def __init__(self, passages: str = "") -> None:
        if passages and not (passages.isdigit() and 0 < int(passages) <= PASSAGES):
            raise InputError(f"data 'pydoc:{passages}': expected pydoc, or pydoc:N with N from 1 to {PASSAGES}")
        count = int(passages or PASSAGES)
        folder = cache_folder() / "pydoc" / f"{environment_key()}-{count}"
        if not folder.is_dir():
            with lock(folder, wait=True):
                if not folder.is_dir():  # nobody has made it in the meantime
                    made = select(read_docstrings(), count)
                    with new_folder(folder) as temporary:
                        write(made, temporary)
        super().__init__(folder, spec=f"pydoc:{passages}" if passages else "pydoc")

    def queries(self, split: str) -> tuple[list[str], list[str]]:
        """Training has more summaries than the corpus has passages: no labels are needed to train on them."""
        query_ids, texts = super().queries(split)
        unjudged = self.folder / UNJUDGED
        if split == "train" and unjudged.exists():
            columns = read_jsonl(unjudged)
            query_ids, texts = [*query_ids, *columns["_id"]], [*texts, *columns["text"]]
        return query_ids, texts

    def everything(self) -> Iterable[str]:
        return chain(super().everything(), self.queries("train")[1])


@dataclass(frozen=True)
class Selection:
    """What goes into the set: the corpus, the judged docstrings of each split, summaries for training alone."""

    corpus: list[Docstring]
    splits: dict[str, list[Docstring]]
    unjudged: list[Docstring]


def environment_key() -> str:
    """What the set depends on: Python, the installed packages and their versions, and this file."""
    versions = sorted(f"{name}=={dist.version}" for name, dist in _distributions().items())
    parts = [platform.python_version(), *versions, Path(__file__).read_text("utf-8")]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def read_docstrings() -> list[Docstring]:
    """Parse the docstrings of the standard library and the installed packages; ten to twenty seconds."""
    by_package: dict[str, list[tuple[str, Path]]] = defaultdict(list)
    for module, path in _modules():
        by_package[module.partition(".")[0]].append((module, path))
    modules = [
        module for of_package in by_package.values() for module in sorted(of_package, key=_sha1)[:MODULES_PER_PACKAGE]
    ]
    found: list[Docstring] = []
    collecting = gc.isenabled()
    gc.disable()  # syntax trees are many objects and no cycles: a third of the time
    try:
        for module, path in progress(sorted(modules), desc="pydoc: reading docstrings, once", unit="module"):
            found += module_docstrings(module, path.read_bytes())
    finally:
        if collecting:
            gc.enable()
    return found


def module_docstrings(module: str, source: bytes) -> Iterator[Docstring]:
    """Docstrings of a module, its public functions, classes and methods, that make a good pair."""
    if source.count(b'"""') < 2 * MIN_DOCSTRINGS:
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # other people's invalid escapes
            tree = ast.parse(source)
    except (SyntaxError, ValueError):  # written for another Python
        return
    package = module.partition(".")[0]
    for title, name, docstring in _walk(tree, module, module.rpartition(".")[2]):
        pair = summary_and_rest(docstring)
        if pair is not None:
            yield Docstring(package, title, name, *pair)


def summary_and_rest(docstring: str) -> tuple[str, str] | None:
    """Cut a docstring into its summary line and the rest; None where they make no good query and passage.

    >>> summary_and_rest("Return a list.")
    """
    first, _, rest = inspect.cleandoc(docstring).partition("\n\n")
    summary, rest = _plain(first), " ".join(_plain(rest).split()[:MAX_REST_WORDS])
    words = summary.split()
    good = (
        len(words) in SUMMARY_WORDS
        and len(rest.split()) >= MIN_REST_WORDS
        and summary[0].isalpha()
        and not summary.endswith(":")
        and ">>>" not in first
        and "deprecated" not in summary.lower()
        and _is_english(summary, least=1)
        and _is_english(rest, least=3)
        and _key(summary) not in _key(rest)
    )
    return (summary, rest) if good else None


def select(docstrings: Iterable[Docstring], passages: int) -> Selection:
    """Choose the set: no summary and no rest twice, whole titles together, every choice by SHA-1."""
    docstrings = list(docstrings)
    summaries = Counter(doc.summary_key for doc in docstrings)
    rests = Counter(doc.rest_key for doc in docstrings)
    ids = Counter(doc.passage_id for doc in docstrings)
    unique = [
        doc for doc in docstrings if summaries[doc.summary_key] == rests[doc.rest_key] == ids[doc.passage_id] == 1
    ]
    by_title: dict[str, list[Docstring]] = defaultdict(list)
    for doc in sorted(unique, key=_sha1):
        by_title[doc.title].append(doc)
    corpus: list[Docstring] = []
    of_package: Counter[str] = Counter()
    for title in sorted(by_title, key=_sha1):
        package = by_title[title][0].package
        room = min(PER_TITLE, PER_PACKAGE - of_package[package], passages - len(corpus))
        taken = by_title[title][:room] if room > 0 else []
        corpus += taken
        of_package[package] += len(taken)
    chosen = {doc.passage_id for doc in corpus}
    by_split: dict[str, list[Docstring]] = {"train": [], "dev": [], "test": []}
    for doc in sorted(corpus, key=lambda doc: _sha1(doc.summary_key)):
        by_split[_split(doc)].append(doc)
    splits = {
        "train": by_split["train"],
        "dev": by_split["dev"][:DEV_QUERIES],
        "test": by_split["test"][:TEST_QUERIES],
    }
    more = [doc for doc in unique if doc.passage_id not in chosen and _split(doc) == "train"]
    return Selection(corpus, splits, sorted(more, key=_sha1)[: max(0, TRAIN_QUERIES - len(splits["train"]))])


def write(made: Selection, folder: Path) -> None:
    """Write the set in BEIR's folder form."""
    _write_jsonl(
        folder / "corpus.jsonl",
        ({"_id": doc.passage_id, "title": doc.title, "text": f"{doc.name}: {doc.rest}"} for doc in made.corpus),
    )
    judged = [doc for docs in made.splits.values() for doc in docs]
    _write_jsonl(folder / "queries.jsonl", ({"_id": f"q:{doc.passage_id}", "text": doc.summary} for doc in judged))
    if made.unjudged:
        _write_jsonl(folder / UNJUDGED, ({"_id": f"q:{doc.passage_id}", "text": doc.summary} for doc in made.unjudged))
    (folder / "qrels").mkdir()
    for split, docs in made.splits.items():
        lines = [f"{HEADERS[0]}\tcorpus-id\tscore", *(f"q:{doc.passage_id}\t{doc.passage_id}\t1" for doc in docs)]
        (folder / "qrels" / f"{split}.tsv").write_text("\n".join(lines) + "\n", "utf-8")


def _distributions() -> dict[str, importlib.metadata.Distribution]:
    found: dict[str, importlib.metadata.Distribution] = {}
    for distribution in importlib.metadata.distributions():
        name = (distribution.metadata["Name"] or "").lower()
        if name and name not in SKIPPED_PACKAGES:
            found.setdefault(name, distribution)
    return found


def _modules() -> Iterator[tuple[str, Path]]:
    """Name and file of every module of the standard library and the installed packages, tests left out."""
    stdlib = Path(sysconfig.get_path("stdlib"))
    for path in stdlib.rglob("*.py"):
        yield from _module(path.relative_to(stdlib), path)
    for distribution in _distributions().values():
        for file in distribution.files or ():
            if file.suffix == ".py" and ".." not in file.parts:
                path = Path(str(file.locate()))
                if path.is_file():
                    yield from _module(Path(*file.parts), path)


def _module(relative: Path, path: Path) -> Iterator[tuple[str, Path]]:
    parts = list(relative.with_suffix("").parts)
    skipped = SKIPPED_FOLDERS.intersection(parts) or parts[-1].startswith(("test_", "conftest")) or "-" in parts[0]
    if parts[-1] == "__init__":
        parts.pop()
    if parts and not skipped:
        yield ".".join(parts), path


def _walk(node: ast.AST, title: str, name: str) -> Iterator[tuple[str, str, str]]:
    """Title, name and docstring of this node and the public ones inside it."""
    if isinstance(node, ast.ClassDef):
        title = f"{title}.{node.name}"
    docstring = ast.get_docstring(node, clean=False)  # type: ignore[arg-type]
    if docstring:
        yield title, name, docstring
    for child in getattr(node, "body", ()):
        if isinstance(child, ast.ClassDef) and not child.name.startswith("_"):
            yield from _walk(child, title, child.name)
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) and not child.name.startswith("_"):
            docstring = ast.get_docstring(child, clean=False)
            if docstring:
                yield title, child.name, docstring


def _plain(text: str) -> str:
    """Running text of a docstring's part: no doctests, section underlines, directives or markup."""
    kept, in_example = [], False
    for line in text.splitlines():
        stripped = line.strip()
        in_example = stripped.startswith(">>>") or (in_example and bool(stripped))
        if not in_example and not _UNDERLINE.match(line) and not _DIRECTIVE.match(line):
            kept.append(stripped)
    return " ".join(_MARKUP.sub("", _ROLE.sub(r"\1", "\n".join(kept))).split())


def _is_english(text: str, least: int) -> bool:
    """Mostly ASCII letters and blanks, with at least so many different common English words."""
    letters = sum(char.isascii() and (char.isalpha() or char == " ") for char in text)
    return letters >= 0.8 * len(text) and len(STOP_WORDS.intersection(text.lower().split())) >= least


def _key(text: str) -> str:
    return " ".join(re.findall(r"[a-z]+", text.lower()))


def _split(doc: Docstring) -> str:
    """Return the split by the summary alone: 20% test, 10% dev, 70% train."""
    return {0: "test", 1: "test", 2: "dev"}.get(sha1_share(doc.summary_key, 10), "train")


def _sha1(value: str | Docstring | tuple[str, Path]) -> str:
    text = value if isinstance(value, str) else value.passage_id if isinstance(value, Docstring) else value[0]
    return hashlib.sha1(text.encode()).hexdigest()


def _write_jsonl(path: Path, rows: Iterable[dict[str, str]]) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
