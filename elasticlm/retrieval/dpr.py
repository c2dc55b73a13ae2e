"""``dpr:DIR``: the files of Dense Passage Retrieval (Karpukhin et al. 2020) for Natural Questions, TriviaQA and others.

- ``psgs_w100.tsv``: the passages; columns id, text and title, with a header;
- ``SPLIT.qas.csv`` or ``SPLIT.csv``: a question and its answers, a Python list, per line, separated by a tab;
- ``SPLIT.json``: questions with their answers and passages, ``positive_ctxs`` and ``hard_negative_ctxs``.

A name may precede the split (``nq-test.qas.csv``, ``biencoder-nq-train.json``), and files may be compressed (.gz). A
split is measured on its .csv, if there is one, over all passages. It is trained on its .json and the passages that this
names, since BM25 and a training need not read 21 million. The ids of questions are the numbers of their rows, from 0.
"""

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

from elasticlm.errors import InputError
from elasticlm.retrieval.corpus import Corpus, Qrels, RetrievalData, shuffled
from elasticlm.retrieval.json_arrays import json_array
from elasticlm.retrieval.lines import plain_or_gz, tab_separated
from elasticlm.retrieval.parsed_files import check_unique, parsed_columns

PASSAGES_FILE = "psgs_w100.tsv"
PASSAGE_COLUMNS = ("id", "text", "title")
CSV, JSON = (".qas.csv", ".csv"), (".json",)
SPLITS = ("train", "dev", "test")


@dataclass(frozen=True)
class Questions:
    """The questions of a file, by id; of a JSON file also the passages that it names, and which are relevant.

    Attributes:
        passages: title and text by id.
    """

    texts: dict[str, str] = field(default_factory=dict)
    answers: dict[str, list[str]] = field(default_factory=dict)
    qrels: Qrels = field(default_factory=dict)
    passages: dict[str, tuple[str, str]] = field(default_factory=dict)

    @property
    def pool(self) -> Corpus:
        """The passages that the file names."""
        titles, texts = zip(*self.passages.values(), strict=True) if self.passages else ((), ())
        return Corpus(list(self.passages), list(titles), list(texts))


class DprFolder:
    """One question answering set in DPR's files."""

    def __init__(self, folder: str | Path) -> None:
        self.folder, self.spec = Path(folder), f"dpr:{folder}"
        if not self.folder.is_dir():
            raise InputError(f"{self.spec}: no such folder {self.folder}")

    def corpus(self) -> Corpus:
        path = self.folder / PASSAGES_FILE
        columns = parsed_columns(path, passage_rows, PASSAGE_COLUMNS)
        check_unique(columns["id"], path, name="id", header=True)
        return Corpus(columns["id"], columns["title"], columns["text"])

    def queries(self, split: str) -> tuple[list[str], list[str]]:
        """Ids and texts of all questions of a split, whether they have passages or not."""
        questions = self._questions(split)
        return list(questions.texts), list(questions.texts.values())

    def retrieval(self, split: str) -> RetrievalData:
        """All passages; those that the split's JSON names where there is no psgs_w100.tsv."""
        questions = self._questions(split)
        has_passages = plain_or_gz(self.folder / PASSAGES_FILE).is_file()
        return self._split(split, questions, self.corpus() if has_passages else questions.pool)

    def training(self, split: str) -> RetrievalData:
        """The questions that have a relevant passage, over the passages that the split's JSON names."""
        if (path := self._file(split, JSON)) is None:
            raise InputError(f"{self.spec}: no file {split}.json, such as biencoder-nq-{split}.json, to train on")
        questions = read_json(path)
        return self._split(split, questions, questions.pool)

    def texts(self, split: str | None, seed: int | None = None) -> Iterable[str]:
        """Passages, which belong to no split."""
        return shuffled(self.corpus().findable.passages, seed)

    def everything(self) -> Iterable[str]:
        splits = [split for split in SPLITS if self._file(split, CSV) or self._file(split, JSON)]
        return chain(self.corpus().findable.passages, chain.from_iterable(self.queries(split)[1] for split in splits))

    def has_labels(self, split: str) -> bool:
        return self._file(split, JSON) is not None

    def _split(self, split: str, questions: Questions, corpus: Corpus) -> RetrievalData:
        data = RetrievalData.of(self.spec, split, corpus, questions.texts, questions.qrels, answers=questions.answers)
        return replace(data, keep_self_hits=True)  # passages are numbered, too

    def _questions(self, split: str) -> Questions:
        if path := self._file(split, CSV):
            return read_csv(path)
        if path := self._file(split, JSON):
            return read_json(path)
        raise InputError(f"{self.spec}: no split {split!r}: expected a file such as nq-{split}.qas.csv or {split}.json")

    def _file(self, split: str, endings: tuple[str, ...]) -> Path | None:
        """The file of a split with one of these endings, the first that there is. Raises InputError for several."""
        for ending in endings:
            name = f"{split}{ending}"
            files = {
                file.name.removesuffix(".gz"): plain_or_gz(file.with_name(file.name.removesuffix(".gz")))
                for file in sorted(self.folder.glob(f"*{name}*"))
                if f"-{file.name.removesuffix('.gz')}".endswith(f"-{name}")
            }
            if len(files) > 1:
                raise InputError(f"{self.spec}: several files for split {split}: {', '.join(files)}; keep one set of "
                                 "questions per folder")  # fmt: skip
            if files:
                return next(iter(files.values()))
        return None


def passage_rows(path: str, shown_as: str, stamp: tuple[int, int]) -> Iterator[dict[str, str]]:
    """Checked rows of psgs_w100.tsv, see elasticlm.retrieval.parsed_files."""
    empty = True
    for number, (place, row) in enumerate(tab_separated(Path(path), PASSAGE_COLUMNS, shown_as=shown_as, quoted=True)):
        if number == 0 and tuple(row) != PASSAGE_COLUMNS:
            raise InputError(f"{place}: expected the header {', '.join(PASSAGE_COLUMNS)}, separated by tabs")
        if number:
            empty = False
            yield dict(zip(PASSAGE_COLUMNS, row, strict=True))
    if empty:
        raise InputError(f"{shown_as} holds no passage")


def read_csv(path: Path) -> Questions:
    """Read questions and answers. Raises InputError, with the line, where a line holds something else."""
    questions = Questions()
    for number, (place, (text, listed)) in enumerate(tab_separated(path, ("question", "answers"), quoted=True)):
        try:
            answers = ast.literal_eval(listed.strip())
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            answers = None
        if not text.strip() or not _are_texts(answers):
            raise InputError(f"{place}: expected a question and a list of its answers, such as ['1984', 'in 1984']")
        questions.texts[str(number)], questions.answers[str(number)] = text.strip(), answers
        questions.qrels[str(number)] = {}
    if not questions.texts:
        raise InputError(f"{path} holds no question")
    return questions


def read_json(path: Path) -> Questions:
    """Read questions with their answers and passages, except ``negative_ctxs``, which are random passages.

    Raises InputError, with the line, where an element lacks something.
    """
    questions = Questions()
    for number, (place, element) in enumerate(json_array(path)):
        qid = str(number)
        try:
            text, answers = element["question"], element["answers"]
            positives = dict(map(_passage, element["positive_ctxs"]))
            others = dict(map(_passage, element.get("hard_negative_ctxs") or ()))
        except (KeyError, TypeError, AttributeError, ValueError):
            text = answers = None
        if not isinstance(text, str) or not _are_texts(answers):
            raise InputError(f'{place}: expected {{"question": "...", "answers": ["..."], "positive_ctxs": '
                             '[{"passage_id": "...", "title": "...", "text": "..."}], "hard_negative_ctxs": [...]}'
                             )  # fmt: skip
        questions.texts[qid], questions.answers[qid] = text, answers
        questions.qrels[qid] = dict.fromkeys(positives, 1)
        for pid, passage in (positives | others).items():
            questions.passages.setdefault(pid, passage)
    if not questions.texts:
        raise InputError(f"{path} holds no question")
    return questions


def _passage(fields: Any) -> tuple[str, tuple[str, str]]:
    """Id, title and text of a passage; TriviaQA's files call the id psg_id."""
    pid, title, text = fields.get("passage_id", fields.get("psg_id")), fields["title"], fields["text"]
    if pid is None or not isinstance(title, str) or not isinstance(text, str):
        raise ValueError
    return str(pid), (title, text)


def _are_texts(answers: object) -> bool:
    return isinstance(answers, list | tuple) and bool(answers) and all(isinstance(one, str) for one in answers)
