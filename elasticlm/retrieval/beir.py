"""``beir:DIR``: corpus.jsonl, queries.jsonl, qrels/SPLIT.tsv and, optional, candidates/SPLIT.tsv.

Every line is checked when it is read; error messages contain the file and the line number.
"""

import json
from collections.abc import Container, Iterator
from pathlib import Path

from elasticlm.errors import InputError
from elasticlm.retrieval.corpus import Corpus, Qrels, RetrievalData, cache_folder, shuffled

HEADER = "query-id"


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
        """Ids and texts of the queries that qrels/SPLIT.tsv judges, in its order."""
        texts = self._query_texts()
        query_ids = list(read_judgements(self._split_file("qrels", split), queries=texts))
        return query_ids, [texts[qid] for qid in query_ids]

    def retrieval(self, split: str) -> RetrievalData:
        qrels_file = self._split_file("qrels", split)
        texts, corpus = self._query_texts(), self.corpus()
        known = set(corpus.ids)
        qrels = read_judgements(qrels_file, queries=texts, passages=known)
        candidates_file = self.folder / "candidates" / f"{split}.tsv"
        candidates = None
        if candidates_file.exists():
            candidates = read_judgements(candidates_file, queries=texts, passages=known)
            candidates = {qid: candidates[qid] for qid in qrels if qid in candidates}
        return RetrievalData.of(self.spec, split, corpus, texts, qrels, candidates)

    def texts(self, split: str | None, seed: int | None = None) -> list[str]:
        """Passages, which belong to no split."""
        return shuffled(self.corpus().passages, seed)

    def everything(self) -> list[str]:
        return self.corpus().passages + list(self._query_texts().values())

    def _query_texts(self) -> dict[str, str]:
        columns = read_jsonl(self.folder / "queries.jsonl")
        return dict(zip(columns["_id"], columns["text"], strict=True))

    def _split_file(self, kind: str, split: str) -> Path:
        path = self.folder / kind / f"{split}.tsv"
        if not path.is_file():
            there = ", ".join(sorted(file.stem for file in path.parent.glob("*.tsv"))) or "none"
            raise InputError(f"{self.spec}: no split {split!r}, since there is no file {path} (splits there: {there})")
        return path


def read_jsonl(path: Path) -> dict[str, list[str]]:
    """Columns ``_id``, ``title``, ``text`` of corpus.jsonl or queries.jsonl, checked; other fields are ignored.

    Goes through ``datasets`` with our own line reader, since its JSON loader names no line in its errors and guesses
    types from the first block. The parsed columns are kept as Arrow files until the file changes.
    """
    import datasets  # a second to import, which only readers of data should pay

    if not path.is_file():
        raise InputError(f"no such file {path}")
    stat = path.stat()
    shown = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        rows = datasets.Dataset.from_generator(
            jsonl_rows,
            features=datasets.Features({name: datasets.Value("string") for name in ("_id", "title", "text")}),
            cache_dir=str(cache_folder() / "datasets"),
            gen_kwargs={"path": str(path.resolve()), "shown_as": str(path), "stamp": (stat.st_size, stat.st_mtime_ns)},
        )
    except datasets.exceptions.DatasetGenerationError as error:
        if isinstance(error.__cause__, InputError):
            raise error.__cause__ from None
        raise
    finally:
        if shown:
            datasets.enable_progress_bars()
    return rows[:]


def jsonl_rows(path: str, shown_as: str, stamp: tuple[int, int]) -> Iterator[dict[str, str]]:
    """Checked rows of a JSONL file; ``stamp`` tells one state of the file from another in the cache."""
    first_line: dict[str, int] = {}
    for where, number, line in _lines(Path(path), shown_as):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"{where}: not JSON ({error.msg})") from None
        if not isinstance(row, dict):
            raise InputError(f'{where}: expected an object such as {{"_id": "7", "text": "..."}}')
        row_id, title, text = row.get("_id"), row.get("title"), row.get("text")
        if not isinstance(row_id, str | int) or isinstance(row_id, bool) or not str(row_id).strip():
            raise InputError(f'{where}: expected "_id", a text that is not empty')
        row_id = str(row_id)
        if row_id in first_line:
            raise InputError(f'{where}: duplicate "_id" {row_id!r}, first in line {first_line[row_id]}')
        if not isinstance(text, str) or not isinstance(title, str | None):
            raise InputError(f'{where}: expected "text" (and "title", where there is one) as texts')
        if not text.strip():
            raise InputError(f'{where}: "text" of {row_id!r} is empty; expected some text (or leave the line out)')
        first_line[row_id] = number
        yield {"_id": row_id, "title": title or "", "text": text}
    if not first_line:
        raise InputError(f"{shown_as} holds no line; expected one JSON object per line")


def read_judgements(
    path: Path, *, queries: Container[str] | None = None, passages: Container[str] | None = None
) -> Qrels:
    """Judgements of a TSV file: query id, passage id, grade; a header line is skipped.

    Raises InputError with the line number where a line has other columns, the grade is not a whole number, or an id is
    not among ``queries`` or ``passages`` (where these are given).
    """
    qrels: Qrels = {}
    for where, number, line in _lines(path, str(path)):
        columns = line.rstrip("\r\n").split("\t")
        if number == 1 and columns[0].strip().lower().replace("_", "-") == HEADER:
            continue
        if len(columns) != 3:
            raise InputError(
                f"{where}: {len(columns)} column(s); expected 3, separated by tabs: query-id, corpus-id, score"
            )
        query_id, passage_id, score = (column.strip() for column in columns)
        try:
            grade = float(score)
        except ValueError:
            grade = float("nan")
        if not grade.is_integer():
            raise InputError(f"{where}: score {score!r}; expected a whole number")
        if queries is not None and query_id not in queries:
            raise InputError(f"{where}: query id {query_id!r} is not in queries.jsonl")
        if passages is not None and passage_id not in passages:
            raise InputError(f"{where}: passage id {passage_id!r} is not in corpus.jsonl")
        if qrels.setdefault(query_id, {}).setdefault(passage_id, int(grade)) != int(grade):
            raise InputError(f"{where}: passage {passage_id!r} was judged otherwise for query {query_id!r} above")
    if not qrels:
        raise InputError(f"{path} holds no judgement; expected lines of query-id, corpus-id, score")
    return qrels


def _lines(path: Path, shown_as: str) -> Iterator[tuple[str, int, str]]:
    """Where it stands, number and text of every line that is not blank."""
    with open(path, "rb") as file:
        for number, raw in enumerate(file, 1):
            where = f"{shown_as}, line {number}"
            try:
                line = raw.decode("utf-8-sig")
            except UnicodeDecodeError:
                raise InputError(f"{where}: not UTF-8") from None
            if line.strip():
                yield where, number, line
