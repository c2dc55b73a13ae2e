"""``beir:DIR``: corpus.jsonl, queries.jsonl, qrels/SPLIT.tsv and, optional, candidates/SPLIT.tsv.

Any of the files may be compressed (.gz). Judgements may have BEIR's three columns or TREC's four. Every line is checked
when it is read; error messages contain the file and the line number. What public sets lack, such as judged passages
that are not in the corpus, is counted in one line (see elasticlm.retrieval.corpus.Gaps).
"""

import json
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

from elasticlm.errors import InputError
from elasticlm.retrieval.columns import ArrowColumn
from elasticlm.retrieval.corpus import Corpus, Gaps, Qrels, RetrievalData, shuffled
from elasticlm.retrieval.lines import numbered_lines, split_files
from elasticlm.retrieval.parsed_files import check_unique, parsed_columns

HEADERS = ("query-id", "query_id", "qid")


class BeirFolder:
    """A retrieval set in BEIR's folder form."""

    def __init__(self, folder: str | Path, spec: str | None = None) -> None:
        self.folder = Path(folder)
        self.spec = spec or f"beir:{folder}"
        if not self.folder.is_dir():
            raise InputError(f"{self.spec}: no such folder {self.folder}")

    def corpus(self) -> Corpus:
        columns = read_jsonl(self.folder / "corpus.jsonl")
        return Corpus(columns["_id"], columns["title"], columns["text"])

    def queries(self, split: str) -> tuple[list[str], list[str]]:
        """Ids and texts of the queries that qrels/SPLIT.tsv judges, in its order.

        A folder without judgements has one split, train, with all its queries.
        """
        texts, gaps = self._query_texts(), Gaps(self.spec)
        if split == "train" and not split_files(self.folder / "qrels", ".tsv"):
            if not texts:
                raise InputError(f"{self.spec}: queries.jsonl has no query with a text")
            return list(texts), list(texts.values())
        qrels = gaps.without_queries(read_judgements(self._split_file("qrels", split)), texts)
        gaps.say()
        return list(qrels), [texts[qid] for qid in qrels]

    def retrieval(self, split: str) -> RetrievalData:
        qrels = read_judgements(self._split_file("qrels", split))
        files = split_files(self.folder / "candidates", ".tsv")
        candidates = read_judgements(files[split]) if split in files else None
        return RetrievalData.of(self.spec, split, self.corpus(), self._query_texts(), qrels, candidates)

    def texts(self, split: str | None, seed: int | None = None) -> Iterable[str]:
        """Passages, which belong to no split."""
        return shuffled(self.corpus().findable.passages, seed)

    def everything(self) -> Iterable[str]:
        return chain(self.corpus().findable.passages, self._query_texts().values())

    def has_labels(self, split: str) -> bool:
        return split in split_files(self.folder / "qrels", ".tsv")

    def _query_texts(self) -> dict[str, str]:
        """Texts of all queries that have one."""
        columns = read_jsonl(self.folder / "queries.jsonl")
        return {qid: text for qid, text in zip(columns["_id"], columns["text"], strict=True) if text.strip()}

    def _split_file(self, kind: str, split: str) -> Path:
        files = split_files(self.folder / kind, ".tsv")
        if split not in files:
            there = ", ".join(files) or "none"
            path = self.folder / kind / f"{split}.tsv"
            raise InputError(f"{self.spec}: no split {split!r}, since there is no file {path} (splits there: {there})")
        return files[split]


def read_jsonl(path: Path) -> dict[str, ArrowColumn]:
    """Columns ``_id``, ``title``, ``text`` of corpus.jsonl or queries.jsonl, or of .gz, checked; others are ignored.

    The parsed columns stay in files, see elasticlm.retrieval.parsed_files.
    """
    columns = parsed_columns(path, jsonl_rows, ("_id", "title", "text"))
    check_unique(columns["_id"], path, name='"_id"')  # a row is a line
    return columns


def jsonl_rows(path: str, shown_as: str, stamp: tuple[int, int]) -> Iterator[dict[str, str]]:
    """Checked rows of a JSONL file; ``stamp`` tells one state of the file from another in the cache."""
    empty = True
    for where, _, line in numbered_lines(Path(path), shown_as):
        try:
            row = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise InputError(f"{where}: not JSON ({error})") from None
        if not isinstance(row, dict):
            raise InputError(f'{where}: expected an object such as {{"_id": "7", "text": "..."}}')
        row_id, title, text = row.get("_id"), row.get("title") or "", row.get("text")
        if not isinstance(row_id, str | int) or isinstance(row_id, bool) or not str(row_id).strip():
            raise InputError(f'{where}: expected "_id", a text that is not empty')
        if not isinstance(text, str) or not isinstance(title, str):
            raise InputError(f'{where}: expected "text" (and "title", where there is one) as texts')
        empty = False
        yield {"_id": str(row_id).strip(), "title": title, "text": text}
    if empty:
        raise InputError(f"{shown_as} holds no line; expected one JSON object per line")


def read_judgements(path: Path) -> Qrels:
    """Judgements of a file: query id, passage id and grade, separated by tabs, with a header or without; or TREC's.

    TREC's four columns are separated by any blanks: query id, an unused one, passage id, grade. Raises InputError with
    the line number if a line has other columns, the grade is not a whole number, or a pair has two grades.
    """
    qrels: Qrels = {}
    for where, number, line in numbered_lines(path):
        columns = [column.strip() for column in line.split("\t")]
        if number == 1 and columns[0].lower() in HEADERS:
            continue
        if len(columns) != 3:
            columns = line.split()
            if len(columns) != 4:
                raise InputError(f"{where}: expected query-id, corpus-id, score, separated by tabs, or TREC's four "
                                 "columns: query 0 passage grade")  # fmt: skip
            del columns[1]
        query_id, passage_id, score = columns
        try:
            grade = float(score)
        except ValueError:
            grade = float("nan")
        if not grade.is_integer():
            raise InputError(f"{where}: score {score!r}; expected a whole number")
        if qrels.setdefault(query_id, {}).setdefault(passage_id, int(grade)) != int(grade):
            raise InputError(f"{where}: passage {passage_id!r} was judged otherwise for query {query_id!r} above")
    if not qrels:
        raise InputError(f"{path} holds no judgement; expected lines of query-id, corpus-id, score")
    return qrels
