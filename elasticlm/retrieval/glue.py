"""``glue:DIR``: SPLIT.jsonl with sentence1, sentence2 (or null) and label; labelled, or as plain sentences.

A split that is used without labels needs none. MNLI's dev splits are dev_matched.jsonl and dev_mismatched.jsonl.
"""

import json
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import NoReturn

from elasticlm.errors import InputError
from elasticlm.retrieval.corpus import Corpus
from elasticlm.retrieval.labelled import Labelled, Row, Sentences, labelled, sentence_pairs
from elasticlm.retrieval.lines import numbered_lines, split_files
from elasticlm.retrieval.split_names import say_which, split_among


class GlueFolder:
    """Sentences and sentence pairs; their labels play no part in training encoders (``queries``)."""

    def __init__(self, folder: str | Path) -> None:
        self.folder, self.spec = Path(folder), f"glue:{folder}"
        if not self.folder.is_dir():
            raise InputError(f"{self.spec}: no such folder {self.folder}")

    def corpus(self) -> Corpus:
        raise InputError(f"{self.spec} holds sentences to train on, but no passages")

    def queries(self, split: str) -> tuple[list[str], list[str]]:
        """Ids and texts of a split's sentences, each once."""
        found: dict[str, str] = {}
        for row_id, sentence in _sentences(self._file(split)):
            found.setdefault(sentence, row_id)
        return list(found.values()), list(found)

    def labelled(self, split: str, labels: Sequence[str] | None = None) -> Labelled:
        """A split with its labels, checked against those that a model knows."""
        return labelled(self.spec, split, _rows(self._file(split)), labels=labels, name=self.folder.name)

    def sentence_pairs(self, split: str) -> list[Sentences]:
        """A split's sentences or pairs, without their labels."""
        return sentence_pairs(self.spec, split, _rows(self._file(split)))

    def has_labels(self, split: str) -> bool:
        return all(label is not None for _, (_, _, label) in islice(_rows(self._file(split)), 1))

    def retrieval(self, split: str) -> NoReturn:
        raise InputError(f"{self.spec} judges no passages")

    def texts(self, split: str | None, seed: int | None = None) -> NoReturn:
        raise InputError(f"{self.spec} holds single sentences, not running text")

    def everything(self) -> Iterator[str]:
        for file in split_files(self.folder, ".jsonl").values():
            for _, sentence in _sentences(file):
                yield sentence

    def _file(self, split: str) -> Path:
        files = split_files(self.folder, ".jsonl")
        found = split_among(split, files)
        if found is None:
            file, there = self.folder / f"{split}.jsonl", ", ".join(files) or "none"
            raise InputError(f"{self.spec}: no split {split!r}, since there is no file {file} (splits there: {there})")
        say_which(self.spec, split, found)
        return files[found]


def _rows(file: Path) -> Iterator[tuple[str, Row]]:
    """Rows with file and line; what they hold is not checked."""
    for place, _, line in numbered_lines(file):
        try:
            row = json.loads(line)
            yield place, (row["sentence1"], row.get("sentence2"), row.get("label"))
        except (ValueError, TypeError, KeyError, AttributeError):
            raise InputError(
                f'{place}: expected {{"sentence1": "...", "sentence2": "..." or null, "label": ...}}'
            ) from None


def _sentences(file: Path) -> Iterator[tuple[str, str]]:
    """Row ids and sentences, stripped; InputError with the line where one is wrong."""
    for place, number, line in numbered_lines(file):
        try:
            row = json.loads(line)
            first, second = row["sentence1"], row.get("sentence2")
        except (ValueError, TypeError, KeyError, AttributeError):
            first = second = None
        if not (isinstance(first, str) and isinstance(second, str | None)):
            raise InputError(f'{place}: expected {{"sentence1": "...", "sentence2": "..." or null}}')
        for part, sentence in (("1", first), ("2", second)):
            if sentence and sentence.strip():
                yield f"{number}.{part}", sentence.strip()
