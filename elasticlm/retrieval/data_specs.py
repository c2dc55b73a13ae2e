"""Load data by its spec: ``beir:DIR``, ``hf:NAME[/CONFIG]``, ``text:FILE``, ``pydoc[:PASSAGES]`` and others.

Each kind of spec has its own module; this module parses the spec and calls it.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

from elasticlm.errors import InputError
from elasticlm.retrieval.corpus import Corpus, RetrievalData, split_sha256
from elasticlm.retrieval.labelled import Labelled, Sentences

__all__ = [
    "Corpus",
    "Labelled",
    "RetrievalData",
    "has_labels",
    "load_corpus",
    "load_everything",
    "load_labelled",
    "load_queries",
    "load_retrieval",
    "load_sentences",
    "load_texts",
    "load_training",
    "split_sha256",
]

FOLDERS = ("beir", "dpr", "glue", "msmarco-docs")
SPECS = f"{', '.join(f'{kind}:DIR' for kind in FOLDERS)}, text:FILE, hf:NAME[/CONFIG] or pydoc"


class Source(Protocol):
    """What a data spec can be asked for."""

    def corpus(self) -> Corpus: ...

    def queries(self, split: str) -> tuple[list[str], list[str]]: ...

    def retrieval(self, split: str) -> RetrievalData: ...

    def texts(self, split: str | None, seed: int | None = None) -> Iterable[str]: ...

    def everything(self) -> Iterable[str]: ...

    def has_labels(self, split: str) -> bool: ...


def check_spec(spec: str) -> None:
    """Raise InputError for a spec of an unknown kind, or whose folder or file is missing. Reads and imports nothing."""
    kind, _, rest = spec.partition(":")
    if kind == "pydoc":
        return
    if not rest or kind not in (*FOLDERS, "text", "hf"):
        raise InputError(f"data {spec!r}: expected {SPECS}")
    if kind in FOLDERS and not Path(rest).is_dir():
        raise InputError(f"{spec}: no such folder {rest}")
    if kind == "text" and not Path(rest).is_file():
        raise InputError(f"{spec}: no such file {rest}")


def open_source(spec: str) -> Source:
    """Return the source that a spec names; InputError where it names none."""
    kind, _, rest = spec.partition(":")
    if kind == "pydoc":
        from elasticlm.retrieval.docstrings import Pydoc

        return Pydoc(rest)
    check_spec(spec)
    if kind == "beir":
        from elasticlm.retrieval.beir import BeirFolder

        return BeirFolder(rest)
    if kind == "dpr":
        from elasticlm.retrieval.dpr import DprFolder

        return DprFolder(rest)
    if kind == "msmarco-docs":
        from elasticlm.retrieval.msmarco_docs import MsMarcoDocs

        return MsMarcoDocs(rest)
    if kind == "glue":
        from elasticlm.retrieval.glue import GlueFolder

        return GlueFolder(rest)
    if kind == "text":
        from elasticlm.retrieval.text_file import TextFile

        return TextFile(rest)
    from elasticlm.retrieval.hub_dataset import HubDataset

    return HubDataset(rest)


def load_retrieval(spec: str, split: str | None = None, *, corpus: str | None = None) -> RetrievalData:
    """Load the corpus and one split's judged queries (default: test), or questions with answers.

    ``text:`` and plain texts from the hub give the two halves of each paragraph as a pair.

    Args:
        corpus: the data spec of the passages, where they are not in the set itself.

    Raises InputError where there are no passages.
    """
    data = open_source(spec).retrieval(split or "test")
    if corpus:
        data = data.over(corpus, load_corpus(corpus))
    if not len(data.passage_ids):
        raise InputError(f"{spec}: split {data.split} has no passages to search; name their data spec with --corpus")
    return data


def load_training(spec: str, split: str) -> RetrievalData:
    """Load one split's judged queries and passages for training with judgements.

    As load_retrieval(), but for sets whose passages are far more than a training needs: ``dpr:`` gives those that its
    training file names.
    """
    source = open_source(spec)
    return source.training(split) if hasattr(source, "training") else source.retrieval(split)


def load_corpus(spec: str) -> Corpus:
    """Load all passages of a spec, which belong to no split. Of a text: its paragraphs, whole."""
    return open_source(spec).corpus()


def load_queries(spec: str, split: str) -> tuple[list[str], list[str]]:
    """Load ids and texts of one split's queries, for training without labels; never another split's.

    Of a text: the sentences of the split's paragraphs.
    """
    return open_source(spec).queries(split)


def load_texts(spec: str, split: str | None = "train", seed: int | None = None) -> Iterable[str]:
    """Load running text for masked or relation objectives: a text's paragraphs, a retrieval set's passages.

    Args:
        seed: of their random order; None: as they come. What is large is streamed: take no more than is needed.
    """
    return open_source(spec).texts(split, seed)


def load_everything(spec: str) -> Iterable[str]:
    """Load every passage, and the queries of every split: what a training that excludes this set must not see."""
    return open_source(spec).everything()


def has_labels(spec: str, split: str) -> bool:
    """Whether a split has judgements or labels that people made; ``text:`` and plain texts from the hub have none."""
    return open_source(spec).has_labels(split)


def load_sentences(spec: str, split: str) -> list[Sentences]:
    """Load one split's sentences or pairs without labels; of a retrieval set its passages, of a text its paragraphs."""
    source = open_source(spec)
    if hasattr(source, "sentence_pairs"):
        return source.sentence_pairs(split)
    return [(text, None) for text in source.texts(split)]


def load_labelled(spec: str, split: str, labels: Sequence[str] | None = None) -> Labelled:
    """Load one split of labelled sentences or pairs, of ``glue:`` or ``hf:``.

    Args:
        labels: those that a model knows, which others are refused against; None takes the data's.
    """
    source = open_source(spec)
    if not hasattr(source, "labelled"):
        raise InputError(f"{spec} has no labelled sentences; expected glue:DIR or hf:NAME[/CONFIG]")
    return source.labelled(split, labels)
