"""``hf:NAME[/CONFIG]``: data sets of the Hugging Face hub, or a local folder in the same form, through ``datasets``.

NAME is OWNER/NAME on the hub or a folder (``hf:./folder``). Three layouts are understood:

- BEIR's: configurations ``corpus`` and ``queries`` (``_id``, ``title``, ``text``), judgements (``query-id``,
  ``corpus-id``, ``score``) in the configuration ``qrels`` or ``default``, else in the data set NAME-qrels;
- Tevatron's: one row per query, with ``query_id``, ``query``, ``positive_passages`` and ``negative_passages`` (lists of
  ``docid``, ``title``, ``text``), and perhaps ``answers``; the corpus is all the passages that the split names;
- Tevatron's corpora: one row per passage, with ``docid``, ``title`` and ``text``;
- a column of text, a paragraph a row: sentences are queries and halves are pairs, as for ``text:FILE``.

Labelled sentences are read from a column ``label`` and the sentence columns of GLUE's sets.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from elasticlm.command import say
from elasticlm.errors import InputError
from elasticlm.retrieval.columns import ArrowColumn, first_repeat
from elasticlm.retrieval.corpus import Corpus, Gaps, Qrels, RetrievalData, cache_folder, shuffled
from elasticlm.retrieval.labelled import Labelled, Row, Sentences, labelled, sentence_pairs
from elasticlm.retrieval.split_names import say_which, split_among
from elasticlm.retrieval.text_file import MIN_QUERY_WORDS, Paragraphs

if TYPE_CHECKING:
    import datasets

LARGE_BYTES = 1 << 30  # a text set above this is streamed, and only its first rows are taken
STREAMED_ROWS = 200_000
CONVERTED = "refs/convert/parquet"  # the hub's conversion of a set, a revision
STRINGS = ("string", "large_string")
TEVATRON_COLUMNS = {"query_id", "query", "positive_passages", "negative_passages"}
CORPUS_COLUMNS = {"docid", "title", "text"}
SENTENCES = (("sentence1", "sentence2"), ("question1", "question2"), ("premise", "hypothesis"),
             ("question", "sentence"), ("sentence", None), ("text", None))  # fmt: skip


class HubDataset:
    """A data set opened by name; nothing is read before it is asked for."""

    def __init__(self, name: str) -> None:
        self.spec = f"hf:{name}"
        self.path, self.config = _path_and_config(name)
        if self.config is not None and self.config not in self._configs:
            raise InputError(f"{self.spec}: no configuration {self.config!r} (there: {', '.join(self._configs)})")

    def corpus(self) -> Corpus:
        if self._is_beir:
            columns = self._table("corpus")
            return Corpus(columns["_id"], columns["title"], columns["text"])
        rows = self._open(self.path, self.config, None)
        if _is_corpus(rows):
            return self._passages(rows)
        return self._judged(rows, None)[0] if _is_tevatron(rows) else self._paragraphs(None).corpus()

    def queries(self, split: str) -> tuple[list[str], list[str]]:
        if not self._is_beir:
            rows = self._open(self.path, self.config, split)
            if not _is_tevatron(rows):
                return self._paragraphs(split).sentences()
            return list(_column(rows, self.spec, "query_id")), list(_column(rows, self.spec, "query"))
        texts, gaps = self._query_texts(), Gaps(self.spec)
        qrels = gaps.without_queries(self._qrels(split), texts)
        gaps.say()
        return list(qrels), [texts[qid] for qid in qrels]

    def retrieval(self, split: str) -> RetrievalData:
        if not self._is_beir:
            rows = self._open(self.path, self.config, split)
            if _is_tevatron(rows):
                data = RetrievalData.of(self.spec, split, *self._judged(rows, split), answers=self._answers(rows))
                return replace(data, keep_self_hits=True)  # queries and passages are numbered
            paragraphs = self._paragraphs(split)
            return paragraphs.pairs(split, paragraphs)
        return RetrievalData.of(self.spec, split, self.corpus(), self._query_texts(), self._qrels(split))

    def texts(self, split: str | None, seed: int | None = None) -> Iterable[str]:
        """Passages; of a text set its lines, read from disk (a very large set: from the hub) as they are taken."""
        if self._is_beir:
            return shuffled(self.corpus().findable.passages, seed)
        rows = self._open(self.path, self.config, split, whole=True)
        if _is_tevatron(rows):
            return shuffled(self._judged(rows, split)[0].findable.passages, seed)
        if _is_corpus(rows):
            return shuffled(self._passages(rows).findable.passages, seed)
        if seed is not None:
            rows = rows.shuffle(seed=seed)  # an order of rows, or of a buffer of a stream; texts stay where they are
        return self._lines(rows, self._text_column(rows))

    def has_labels(self, split: str) -> bool:
        if self._is_beir:
            return True
        rows = self._open(self.path, self.config, split)
        return _is_tevatron(rows) or "label" in rows.column_names

    def labelled(self, split: str, labels: Sequence[str] | None = None) -> Labelled:
        """A split with its labels, checked against those that a model knows."""
        rows = self._open(self.path, self.config, split)
        if "label" not in rows.column_names:
            raise InputError(f"{self.spec}: no column 'label'; the columns are {', '.join(rows.column_names)}")
        own = getattr(rows.features["label"], "names", None)
        return labelled(self.spec, split, self._sentences(rows, split), labels=labels or own)

    def sentence_pairs(self, split: str) -> list[Sentences]:
        """A split's sentences or pairs, without their labels; of a text its lines."""
        rows = self._open(self.path, self.config, split)
        if self._is_beir or _is_tevatron(rows) or not _sentence_columns(rows):
            return [(text, None) for text in self.texts(split)]
        return sentence_pairs(self.spec, split, self._sentences(rows, split))

    def _sentences(self, rows: "datasets.Dataset", split: str) -> Iterator[tuple[str, Row]]:
        """Rows of sentences with their places; the label is None where there is no such column."""
        columns = _sentence_columns(rows)
        if columns is None:
            raise InputError(f"{self.spec}: no column with sentences; the columns are {', '.join(rows.column_names)}")
        first, second = columns
        for number, row in enumerate(rows):
            place = f"{self.spec}, split {split}, row {number}"
            yield place, (row[first], row[second] if second else None, row.get("label"))

    def everything(self) -> Iterable[str]:
        if self._is_beir:
            return chain(self.corpus().findable.passages, self._query_texts().values())
        import datasets

        with _loading(self.spec):
            splits = _ask(datasets.get_dataset_split_names, self.path, self.config)
        tevatron = _is_tevatron(self._open(self.path, self.config, splits[0]))
        queries = (self.queries(split)[1] for split in splits if tevatron)
        return chain.from_iterable(chain((self.texts(split) for split in splits), queries))

    @cached_property
    def _configs(self) -> list[str]:
        import datasets

        with _loading(self.spec):
            return _ask(datasets.get_dataset_config_names, self.path)

    @property
    def _is_beir(self) -> bool:
        return self.config is None and {"corpus", "queries"} <= set(self._configs)

    def _query_texts(self) -> dict[str, str]:
        """Texts of all queries that have one."""
        columns = self._table("queries")
        return {qid: text for qid, text in zip(columns["_id"], columns["text"], strict=True) if text.strip()}

    def _table(self, config: str) -> dict[str, Sequence[str]]:
        """Checked columns of the corpus or the queries, whose one split bears any name."""
        rows = self._open(self.path, config, None)
        where = f"{self.spec}, configuration {config}"
        columns = {"_id": _column(rows, where, "_id", "id"), "text": _column(rows, where, "text")}
        columns["title"] = _column(rows, where, "title") if "title" in rows.column_names else [""] * len(rows)
        if repeat := first_repeat(columns["_id"]):
            raise InputError(f"{where}, row {repeat[0]}: duplicate id {columns['_id'][repeat[0]]!r}")
        return columns

    def _qrels(self, split: str) -> Qrels:
        config = next((name for name in ("qrels", "default") if name in self._configs), None)
        rows = self._open(self.path if config else f"{self.path}-qrels", config, split)
        where = f"{self.spec}, judgements of split {split}"
        query_ids, passage_ids = _column(rows, where, "query-id"), _column(rows, where, "corpus-id")
        qrels: Qrels = {}
        for number, (qid, pid, score) in enumerate(zip(query_ids, passage_ids, rows["score"], strict=True)):
            if not isinstance(score, int | float) or not float(score).is_integer():
                raise InputError(f"{where}, row {number}: score {score!r}; expected a whole number")
            qrels.setdefault(qid, {})[pid] = int(score)
        return qrels

    def _judged(self, rows: "datasets.Dataset", split: str | None) -> tuple[Corpus, dict[str, str], Qrels]:
        """Passages, queries and judgements of Tevatron's rows; a passage of several queries occurs once."""
        passages: dict[str, tuple[str, str]] = {}
        queries: dict[str, str] = {}
        qrels: Qrels = {}
        for number, row in enumerate(rows):
            if not (row["query"] or "").strip():
                raise InputError(f"{self.spec}, split {split}, row {number}: an empty query")
            qid = str(row["query_id"])
            queries[qid] = row["query"]
            for passage in (*row["positive_passages"], *row["negative_passages"]):
                passages.setdefault(str(passage["docid"]), (passage.get("title") or "", passage["text"]))
            qrels[qid] = {str(passage["docid"]): 1 for passage in row["positive_passages"]}
        titles, texts = zip(*passages.values(), strict=True) if passages else ((), ())
        return Corpus(list(passages), list(titles), list(texts)), queries, qrels

    def _answers(self, rows: "datasets.Dataset") -> dict[str, list[str]] | None:
        """The answers of Tevatron's rows, by query; None where there is no such column."""
        if "answers" not in rows.column_names:
            return None
        pairs = rows.select_columns(["query_id", "answers"])
        return {str(row["query_id"]): list(row["answers"] or ()) for row in pairs}

    def _passages(self, rows: "datasets.Dataset") -> Corpus:
        """The passages of Tevatron's corpora, whose ids must differ."""
        ids, titles, texts = (_column(rows, self.spec, name) for name in ("docid", "title", "text"))
        if repeat := first_repeat(ids):
            raise InputError(f"{self.spec}, row {repeat[0]}: duplicate docid {ids[repeat[0]]!r}")
        return Corpus(ids, titles, texts)

    def _paragraphs(self, split: str | None) -> Paragraphs:
        rows = self._open(self.path, self.config, split)
        column = self._text_column(rows)
        texts = [" ".join((row[column] or "").split()) for row in rows]
        numbered = [(str(number), text) for number, text in enumerate(texts) if text]
        if not numbered:
            raise InputError(f"{self.spec}: column {column!r} holds no text")
        return Paragraphs(self.spec, [pid for pid, _ in numbered], [text for _, text in numbered])

    def _text_column(self, rows: "datasets.Dataset | datasets.IterableDataset") -> str:
        strings = [name for name, feature in rows.features.items() if getattr(feature, "dtype", "") in STRINGS]
        if "text" not in strings and len(strings) != 1:
            raise InputError(
                f"{self.spec}: expected the configurations corpus and queries, or a column 'text'; "
                f"the columns are {', '.join(rows.features)}"
            )
        return "text" if "text" in strings else strings[0]

    def _lines(self, rows: "datasets.Dataset | datasets.IterableDataset", column: str) -> Iterator[str]:
        """Lines of at least four words: of an article its paragraphs."""
        with _loading(self.spec):
            for row in rows:
                for line in (row[column] or "").splitlines():
                    if len(words := line.split()) >= MIN_QUERY_WORDS:
                        yield " ".join(words)

    def _open(self, path: str, config: str | None, split: str | None, *, whole: bool = False) -> "datasets.Dataset":
        """One split's rows (the only or the first split where none is asked for).

        A very large text is streamed: its first rows as a table, or, where it is wanted ``whole``, the stream itself.
        """
        import datasets

        cache = str(_cache_of(path))
        with _loading(self.spec):
            splits = _ask(datasets.get_dataset_split_names, path, config)
            wanted = split or splits[0]
            found = split_among(wanted, splits)
            if found is None:
                raise InputError(f"{self.spec}: no split {split!r} (there: {', '.join(splits)})")
            say_which(self.spec, wanted, found)
            details = _ask(datasets.load_dataset_builder, path, config, cache_dir=cache).info
            size = details.dataset_size or details.download_size or 0
            columns = set(details.features or ())
            if size <= LARGE_BYTES or self._is_beir or columns >= TEVATRON_COLUMNS or columns >= CORPUS_COLUMNS:
                return _ask(datasets.load_dataset, path, config, split=found, cache_dir=cache)  # a corpus must be whole
            stream = _ask(datasets.load_dataset, path, config, split=found, cache_dir=cache, streaming=True)
            if whole:
                say(f"{self.spec}: {size / 2**30:.1f} GiB, streaming")
                return stream
            say(f"{self.spec}: {size / 2**30:.1f} GiB, streaming its first {STREAMED_ROWS:,} rows")
            return datasets.Dataset.from_list(list(islice(stream, STREAMED_ROWS)), features=stream.features)


def _is_tevatron(rows: "datasets.Dataset | datasets.IterableDataset") -> bool:
    return set(rows.column_names or ()) >= TEVATRON_COLUMNS


def _is_corpus(rows: "datasets.Dataset | datasets.IterableDataset") -> bool:
    return set(rows.column_names or ()) >= CORPUS_COLUMNS


def _sentence_columns(rows: "datasets.Dataset | datasets.IterableDataset") -> tuple[str, str | None] | None:
    """Names of the columns with the first and the second sentence; None where there are none."""
    there = rows.column_names or ()
    return next((pair for pair in SENTENCES if all(name is None or name in there for name in pair)), None)


def _path_and_config(name: str) -> tuple[str, str | None]:
    """Tell NAME from CONFIG: a folder that exists, or OWNER/NAME, or a bare NAME, is the name."""
    path, _, config = name.rpartition("/")
    if Path(name).is_dir() or "/" not in name:
        return name, None
    if Path(path).is_dir() and name.startswith((".", "/")):
        return path, config
    if name.startswith((".", "/")):
        raise InputError(f"hf:{name}: no such folder")
    return (path, config) if name.count("/") == 2 else (name, None)


def _cache_of(path: str) -> Path:
    """Where a set's tables are kept: for a local folder, by the state of its files, which ``datasets`` does not see."""
    state = [
        (str(file.relative_to(path)), file.stat().st_size, file.stat().st_mtime_ns)
        for file in sorted(Path(path).rglob("*"))
        if file.is_file()
    ]
    return cache_folder() / "datasets" / (hashlib.sha256(repr(state).encode()).hexdigest()[:16] if state else "hub")


def _column(rows: Any, where: str, *names: str) -> Sequence[str]:
    """A column as texts, under the first of its possible names; texts without nulls stay in Arrow."""
    for name in names:
        if name in rows.column_names:
            column = rows.data.column(name)
            if str(column.type) in STRINGS and not column.null_count:
                return ArrowColumn(column)
            return ["" if value is None else str(value) for value in rows[name]]
    raise InputError(f"{where}: no column {' or '.join(names)} (there: {', '.join(rows.column_names)})")


def _ask(function: Callable[..., Any], path: str, *args: Any, **options: Any) -> Any:
    """Call a function of ``datasets`` for a set.

    Of a set that is a script, which ``datasets`` no longer runs (Tevatron's are), the hub has a conversion to Parquet.
    """
    try:
        return function(path, *args, **options)
    except RuntimeError as error:
        if "scripts are no longer supported" not in str(error):
            raise
        return function(path, *args, revision=CONVERTED, **options)


@contextmanager
def _loading(spec: str) -> Iterator[None]:
    """Whatever ``datasets`` raises (not found, out of reach, a broken file) becomes one line that names the spec."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # its exceptions share no base class
        cause = error.__cause__ or error
        raise InputError(f"{spec} cannot be loaded: {type(cause).__name__}: {str(cause).splitlines()[0]}") from error
