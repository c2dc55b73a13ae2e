"""``glue:DIR``: SPLIT.jsonl with sentence1, sentence2 (or null) and label. As a source of plain sentences for now."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from elasticlm.errors import InputError
from elasticlm.retrieval.corpus import Corpus


class GlueFolder:
    """Sentences and sentence pairs; their labels play no part in training encoders."""

    def __init__(self, folder: str | Path) -> None:
        self.folder, self.spec = Path(folder), f"glue:{folder}"
        if not self.folder.is_dir():
            raise InputError(f"{self.spec}: no such folder {self.folder}")

    def corpus(self) -> Corpus:
        raise InputError(f"{self.spec} holds sentences to train on, but no passages")

    def queries(self, split: str) -> tuple[list[str], list[str]]:
        """Ids and texts of a split's sentences, each once."""
        file = self.folder / f"{split}.jsonl"
        if not file.is_file():
            there = ", ".join(sorted(found.stem for found in self.folder.glob("*.jsonl"))) or "none"
            raise InputError(f"{self.spec}: no split {split!r}, since there is no file {file} (splits there: {there})")
        found: dict[str, str] = {}
        for row_id, sentence in _sentences(file):
            found.setdefault(sentence, row_id)
        return list(found.values()), list(found)

    def retrieval(self, split: str) -> NoReturn:
        raise InputError(f"{self.spec} judges no passages")

    def texts(self, split: str | None, seed: int | None = None) -> NoReturn:
        raise InputError(f"{self.spec} holds single sentences, not running text")

    def everything(self) -> Iterator[str]:
        for file in sorted(self.folder.glob("*.jsonl")):
            for _, sentence in _sentences(file):
                yield sentence


def _sentences(file: Path) -> Iterator[tuple[str, str]]:
    """Row ids and sentences, stripped; InputError with the line where one is wrong."""
    with open(file, encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
                first, second = row["sentence1"], row.get("sentence2")
            except (ValueError, TypeError, KeyError, AttributeError):
                first = second = None
            if not (isinstance(first, str) and isinstance(second, str | None)):
                raise InputError(f'{file}, line {number}: expected {{"sentence1": "...", "sentence2": "..." or null}}')
            for place, sentence in (("1", first), ("2", second)):
                if sentence and sentence.strip():
                    yield f"{number}.{place}", sentence.strip()
